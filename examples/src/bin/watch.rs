//! `./dev demo`: ten people, one smartwatch model each, one adapter each.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use examples::watch::run::{Event, Options, Tools, run, total_steps};
use examples::watch::{chart, report};
use indicatif::{ProgressBar, ProgressStyle};
use inlay_runtime::Device;

/// Personalizes a frozen smartwatch model for ten real people, and shows what each of them gained
#[derive(Parser)]
#[command(name = "watch", version)]
struct Cli {
    /// People, by number, separated by commas [default: all ten]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10))]
    people: Vec<u32>,
    /// Where to train: auto, cpu, vulkan or vulkan:NAME
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Folder for everything that is made
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match demo(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo(cli: Cli) -> examples::Result<()> {
    let start = Instant::now();
    let options = Options { people: cli.people, device: cli.device, out: cli.out, tools: Tools::beside_this()? };
    std::fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;

    let style = ProgressStyle::with_template("{msg:24} {bar:40.cyan/black.bright} {percent:>3} %  {eta} left")
        .expect("the template is valid")
        .progress_chars("━╸━");
    let bar = ProgressBar::new(total_steps(&options)? as u64).with_style(style).with_message("exporting");
    bar.tick();
    let rows = run(&options, &mut |event| match event {
        Event::Exported(model, export) => {
            let error = export.outputs.iter().map(|output| output.max_abs).fold(0.0, f32::max);
            bar.suspend(|| {
                eprintln!(
                    "converter export {model}: {} B as float -> {} B as int8; largest difference of a logit {error:.4}",
                    export.source_bytes,
                    export.model_bytes + export.data_bytes,
                );
            });
        }
        Event::Trained { person, steps } => {
            bar.set_message(format!("person {person} calibrates"));
            bar.inc(steps as u64);
        }
        Event::Classified(person) => bar.set_message(format!("person {person} is classified")),
    })?;
    bar.finish_and_clear();

    report::write_json(&rows, &options.out.join("watch.json"))?;
    chart::draw(&rows, &options.out)?;
    let out = options.out.display();
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "\n{}", report::table(&rows))?;
    writeln!(stdout, "Chart: {out}/watch.svg, {out}/watch.png; figures: {out}/watch.json")?;
    writeln!(stdout, "{} people in {:.1} s.", rows.len(), start.elapsed().as_secs_f64())?;
    Ok(())
}
