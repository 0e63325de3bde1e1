use inlay_runtime::{Dataset, npz};
use serde::Serialize;

use crate::args::{AdapterArgs, Predict};
use crate::output::{self, Failure, Progress};
use crate::run;

#[derive(Serialize)]
struct Predicted<'a> {
    samples: usize,
    outputs: Vec<Output<'a>>,
    out: &'a std::path::Path,
    device: &'a str,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    shape: &'a [usize],
}

/// `personalize predict`.
pub fn run(args: &Predict) -> Result<(), Failure> {
    let AdapterArgs { adapter, key_file, .. } = &args.adapter;
    run::expect_no_input("--out", &args.out, &args.base, &[Some(&args.data), adapter.as_ref(), key_file.as_ref()])?;
    let mut session = run::session(&args.base, &args.device)?;
    let data = Dataset::read(session.base(), &args.data)?;
    let adapter = run::adapter(session.base(), &args.adapter)?;
    session.set_adapter(adapter)?;
    session.prove_effect(&data)?;
    let outputs = {
        let mut progress = Progress::new("predicting", data.len() as u64);
        session.predict_all(&data, args.batch_size as usize, |done| progress.set(done as u64, ""))?
    };
    for (name, array) in &outputs {
        if array.floats().is_some_and(|values| values.iter().any(|value| !value.is_finite())) {
            output::note(format_args!("output \"{name}\" holds values that are not finite; look at the inputs"));
        }
    }
    npz::write(&args.out, outputs.iter().map(|(name, array)| (name.as_str(), array)))?;
    let device = &session.device().name;
    let predicted = Predicted {
        samples: data.len(),
        outputs: outputs.iter().map(|(name, array)| Output { name, shape: array.shape() }).collect(),
        out: &args.out,
        device,
    };
    let text = format!("{} samples -> {} ({device})", data.len(), args.out.display());
    output::result(args.json.json, &predicted, &text)
}
