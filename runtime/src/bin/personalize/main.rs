//! The command line of Inlay on a device: train, predict, eval, adapters, devices, bench.

mod adapters;
mod args;
mod bench;
mod devices;
mod eval;
mod new;
mod output;
mod predict;
mod run;
mod train;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use args::{Cli, Command};

fn main() -> ExitCode {
    // A wrong command line ends here, with exit code 2.
    let cli = Cli::parse();
    if let Command::Train(args) = &cli.command
        && let Some(conflict) = args.conflict()
    {
        Cli::command().error(ErrorKind::ArgumentConflict, conflict).exit();
    }
    let json = cli.command.json();
    let done = match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Adapters(args) => adapters::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(error.as_ref(), json);
            ExitCode::FAILURE
        }
    }
}
