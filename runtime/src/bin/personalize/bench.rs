use std::ops::ControlFlow;
use std::time::Instant;

use inlay_runtime::random::Random;
use inlay_runtime::train::losses;
use inlay_runtime::{Base, DType, Dataset, Dim, HostTensor, LABELS, Session, TrainOptions, Trainer};
use serde::Serialize;

use crate::args::Bench;
use crate::output::{self, Failure, Progress};
use crate::{new, run};

#[derive(Serialize)]
struct Timed<'a> {
    ms_per_step: f64,
    ms_per_forward: f64,
    ms_per_forward_without_adapter: f64,
    batch_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u32>,
    samples_per_second: f64,
    threads: usize,
    repeats: u32,
    points: usize,
    parameters: usize,
    loss: &'a str,
    device: &'a str,
}

/// `personalize bench`.
pub fn run(args: &Bench) -> Result<(), Failure> {
    let mut session = run::session(&args.base, &args.device)?;
    let batch_size = args.batch_size as usize;
    let loss = losses::find("cross-entropy").expect("it is in the list");
    let inputs = random_inputs(session.base(), batch_size, args.seq.map(|n| n as usize))?;
    let (adapter, _) = new::adapter(session.base(), &args.adapter, SEED)?;
    let (points, parameters) = (adapter.points().count(), adapter.parameter_count());

    let repeats = args.repeats as usize;
    let warm_up = repeats.div_ceil(5);
    let mut progress = Progress::new("timing", 3 * (repeats + warm_up) as u64);
    let mut done = 0;
    let mut tick = || {
        done += 1;
        progress.set(done, "");
    };

    let refs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, array)| (name.as_str(), array)).collect();
    let forward = |session: &mut Session, tick: &mut dyn FnMut()| -> Result<_, Failure> {
        let (mut times, mut outputs) = (Vec::new(), Vec::new());
        for _ in 0..repeats + warm_up {
            let start = Instant::now();
            outputs = session.predict(&refs)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            tick();
        }
        Ok((median(&mut times[warm_up..]), outputs))
    };
    let (ms_per_forward_without_adapter, outputs) = forward(&mut session, &mut tick)?;

    let output = match &args.output {
        Some(name) => outputs.iter().find(|(output, _)| output == name),
        None => outputs.iter().find(|(_, array)| array.dtype() == DType::F32),
    };
    let (_, output) = output.ok_or("the model has no such float output")?;
    let labels = random_labels(output);
    let data = Dataset::new(session.base(), inputs.iter().cloned().chain([(LABELS.to_owned(), labels)]))?;

    let mut options = TrainOptions::new().steps((repeats + warm_up) as u64).batch_size(batch_size).loss(loss);
    if let Some(output) = &args.output {
        options = options.output(output);
    }
    let mut times = Vec::new();
    let mut trainer = Trainer::new(&mut session, adapter, &data, options)?;
    let trained = trainer.run(|step| {
        times.push(step.ms);
        tick();
        ControlFlow::Continue(())
    })?;
    let ms_per_step = median(&mut times[warm_up..]);
    session.set_adapter(Some(trained.adapter))?;
    let (ms_per_forward, _) = forward(&mut session, &mut tick)?;
    drop(progress);

    let device = &session.device().name;
    let threads =
        args.device.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let timed = Timed {
        ms_per_step,
        ms_per_forward,
        ms_per_forward_without_adapter,
        batch_size,
        seq: args.seq,
        samples_per_second: batch_size as f64 / ms_per_step * 1e3,
        threads,
        repeats: args.repeats,
        points,
        parameters,
        loss: loss.name(),
        device,
    };
    let text = format!(
        "{ms_per_step:.2} ms a training step, {ms_per_forward:.2} ms a prediction ({ms_per_forward_without_adapter:.2} without the adapter)\n\
         {batch_size} samples a step, {parameters} parameters at {points} points, {threads} threads, {device}"
    );
    output::result(args.json.json, &timed, &text)
}

const SEED: u64 = 1;

/// Inputs that the model accepts: ids within the vocabulary, masks of ones, floats in [-1, 1).
fn random_inputs(base: &Base, batch: usize, seq: Option<usize>) -> Result<Vec<(String, HostTensor)>, Failure> {
    let mut random = Random::new(SEED, 0);
    let mut inputs = Vec::new();
    for port in base.inputs() {
        let mut shape = Vec::new();
        for (axis, dim) in port.shape.iter().enumerate() {
            shape.push(match (axis, dim) {
                (0, Dim::Symbol(_)) => batch,
                (_, Dim::Fixed(size)) => *size,
                (_, Dim::Symbol(symbol)) => seq.ok_or_else(|| {
                    format!("input \"{}\" has an open dimension {symbol:?}; give its size with --seq", port.name)
                })?,
            });
        }
        let too_large = || {
            format!("input \"{}\" of shape {shape:?} does not fit into memory; use a smaller --batch-size", port.name)
        };
        let len = shape.iter().try_fold(1usize, |len, dim| len.checked_mul(*dim)).ok_or_else(too_large)?;
        // Eight bytes hold an element of any type.
        Vec::<u64>::new().try_reserve_exact(len).map_err(|_| too_large())?;
        let array = match (port.dtype, base.vocabulary(&port.name)) {
            (DType::F32, _) => HostTensor::new(shape, (0..len).map(|_| random.uniform(1.0)).collect::<Vec<f32>>()),
            (_, Some(size)) => {
                HostTensor::new(shape, (0..len).map(|_| random.below(size as u64) as i64).collect::<Vec<i64>>())
            }
            (_, None) => HostTensor::new(shape, vec![1i64; len]),
        };
        let array = array.expect("as many elements as the shape says");
        inputs.push((port.name.clone(), array));
    }
    Ok(inputs)
}

fn random_labels(output: &HostTensor) -> HostTensor {
    let mut random = Random::new(SEED, 1);
    let (classes, rows) = output.shape().split_last().map_or((1, &[][..]), |(classes, rows)| (*classes, rows));
    let labels: Vec<i64> = (0..rows.iter().product()).map(|_| random.below(classes as u64) as i64).collect();
    HostTensor::new(rows, labels).expect("as many elements as the shape says")
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}
