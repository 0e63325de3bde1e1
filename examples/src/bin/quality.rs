//! `./dev quality`: what each adapter kind gains on real data, at which size of its record.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use examples::quality::case::Case;
use examples::quality::figures::{Figures, Spread};
use examples::quality::sweep::{self, Options, Short};
use examples::quality::{cases, chart, page};
use examples::svg;
use examples::watch::run::Tools;
use inlay_runtime::Dtype;

/// Measures what each adapter kind gains on real data, at which size of its record
#[derive(Parser)]
#[command(name = "quality", version)]
struct Cli {
    /// Cases, by name, separated by commas [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = names())]
    cases: Vec<String>,
    /// CPU threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = threads)]
    threads: usize,
    /// One person, one size of each kind, ten steps: shows that everything works; the figures mean nothing
    #[arg(long)]
    short: bool,
    /// Run nothing: draw and write what earlier runs left in the folder
    #[arg(long, conflicts_with_all = ["cases", "short"])]
    draw_only: bool,
    /// Folder for everything that is made
    #[arg(long, value_name = "DIR", default_value = "target/quality")]
    out: PathBuf,
    /// Write docs/benchmarks/quality.md and docs/images/quality.svg below this folder too
    #[arg(long, value_name = "DIR", conflicts_with = "short")]
    docs: Option<PathBuf>,
}

fn names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(cases::ALL.iter().map(|case| case.name))
}

fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|threads| *threads > 0).ok_or_else(|| "expected a number of at least 1".into())
}

fn main() -> ExitCode {
    match quality(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn quality(cli: &Cli) -> examples::Result<()> {
    std::fs::create_dir_all(&cli.out).map_err(|error| format!("{}: {error}", cli.out.display()))?;
    let wanted = |case: &&Case| cli.cases.is_empty() || cli.cases.iter().any(|name| name == case.name);
    if !cli.draw_only {
        let converter = Tools::beside_this()?.converter;
        let short = cli.short.then_some(Short { people: 1, steps: 10 });
        let options = Options { converter, out: cli.out.clone(), threads: cli.threads, short };
        for case in cases::ALL.iter().filter(wanted) {
            run(case, &options)?;
        }
    }

    let mut found = Vec::new();
    for case in cases::ALL {
        found.extend(Figures::read(&cli.out, case.name)?.map(|figures| (*case, figures)));
    }
    if found.is_empty() {
        return Err(format!("{} holds no figures; run without --draw-only", cli.out.display()).into());
    }
    let (text, drawing) = (page::page(&found), chart::svg(&found));
    let write = |path: PathBuf, bytes: &[u8]| {
        std::fs::write(&path, bytes).map_err(|error| examples::Error::from(format!("{}: {error}", path.display())))
    };
    write(cli.out.join("quality.md"), text.as_bytes())?;
    write(cli.out.join("quality.svg"), drawing.as_bytes())?;
    write(cli.out.join("quality.png"), &svg::png(&drawing)?)?;
    if let Some(docs) = &cli.docs {
        write(docs.join("docs/benchmarks/quality.md"), text.as_bytes())?;
        write(docs.join("docs/images/quality.svg"), drawing.as_bytes())?;
    }
    let out = cli.out.display();
    writeln!(io::stdout().lock(), "Page: {out}/quality.md; plot: {out}/quality.svg, {out}/quality.png")?;
    Ok(())
}

/// Runs a case, says how it goes, and leaves its figures in the folder.
fn run(case: &Case, options: &Options) -> examples::Result<()> {
    let start = Instant::now();
    eprintln!("{}", case.title);
    let figures = sweep::run(case, options, &mut |row| {
        let int8 = row.at(Dtype::Int8);
        let lift = Spread::of(int8.map_or(&[], |stored| &stored.lifts));
        let bytes = int8.map_or(0, |stored| stored.bytes);
        eprintln!(
            "  {:34} {bytes:>8} B at int8  {:>+6.1} ± {:.1} points  {:.2} ms a step, rate {}",
            row.label(),
            lift.mean,
            lift.sd,
            row.ms_per_step,
            row.lr,
        );
    })?;
    figures.write(&options.out)?;
    eprintln!("  {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
