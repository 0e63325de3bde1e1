use inlay_runtime::train::{Evaluation, losses};
use inlay_runtime::{Dataset, Session};
use serde::Serialize;

use crate::args::Eval;
use crate::output::{self, Failure, Progress};
use crate::run;

#[derive(Serialize)]
struct Evaluated<'a> {
    samples: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Figures>,
    device: &'a str,
}

/// Loss and accuracy as JSON has them.
#[derive(Serialize)]
pub struct Figures {
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
}

impl From<Evaluation> for Figures {
    fn from(evaluation: Evaluation) -> Self {
        Figures { loss: evaluation.loss, accuracy: evaluation.accuracy }
    }
}

/// `personalize eval`.
pub fn run(args: &Eval) -> Result<(), Failure> {
    let mut session = run::session(&args.base, &args.device)?;
    let data = Dataset::read(session.base(), &args.data)?;
    let adapter = run::adapter(session.base(), &args.adapter)?;
    // An output that the adapter adds, the base alone does not have.
    let has_base = adapter.as_ref().is_none_or(|adapter| adapter.outputs().next().is_none() || args.output.is_some());
    let passes = usize::from(has_base) + usize::from(adapter.is_some());
    let mut progress = Progress::new("evaluating", (data.len() * passes) as u64);
    let loss = args.loss.as_deref().and_then(losses::find);
    let mut evaluate = |session: &mut Session, before: usize| {
        let set = |done: usize| progress.set((before + done) as u64, "");
        session.evaluate(&data, loss, args.output.as_deref(), args.batch_size as usize, set)
    };
    let base = if has_base { Some(evaluate(&mut session, 0)?) } else { None };
    let adapted = match adapter {
        Some(adapter) => {
            session.set_adapter(Some(adapter))?;
            session.prove_effect(&data)?;
            Some(evaluate(&mut session, if has_base { data.len() } else { 0 })?)
        }
        None => None,
    };
    drop(progress);
    let device = &session.device().name;
    let evaluated =
        Evaluated { samples: data.len(), base: base.map(Figures::from), adapter: adapted.map(Figures::from), device };
    let mut text = format!("{} samples on {device}", data.len());
    if let Some(base) = base {
        text.push_str(&format!("\nbase          {}", line(&base)));
    }
    if let Some(adapted) = adapted {
        text.push_str(&format!("\nwith adapter  {}", line(&adapted)));
    }
    output::result(args.json.json, &evaluated, &text)
}

fn line(evaluation: &Evaluation) -> String {
    match evaluation.accuracy {
        Some(accuracy) => format!("loss {:.4}  accuracy {:.1} %", evaluation.loss, 100.0 * accuracy),
        None => format!("loss {:.6}", evaluation.loss),
    }
}
