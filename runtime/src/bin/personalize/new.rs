//! The adapter that `train` starts from.

use inlay_runtime::adapters::{self, AdapterKind, Budget, Targets};
use inlay_runtime::{Adapter, AdapterOptions, Base, Dtype};

use crate::args::NewAdapter;
use crate::output::Failure;
use crate::run;

/// The name under which a head's size goes.
const CLASSES: &str = "classes";

/// The adapter to start from, and the dtype that its record should have when the options choose one.
pub fn adapter(base: &Base, args: &NewAdapter, seed: u64) -> Result<(Adapter, Option<Dtype>), Failure> {
    if let Some(path) = &args.init_adapter {
        let adapter = run::adapter_at(base, path)?;
        return Ok((more_classes(base, adapter, args.classes)?, None));
    }
    if let Some(bytes) = args.adapter_budget {
        let Budget { adapter, dtype, bytes: needed, what } = Budget::choose(base, bytes, seed)?;
        eprintln!("within {bytes} bytes: {what}, {} ({needed} bytes)", dtype.name());
        return Ok((adapter, Some(dtype)));
    }
    let names = args.kind.as_deref().unwrap_or("lora");
    let kinds: Vec<&'static dyn AdapterKind> = names.split('+').filter_map(adapters::find).collect();
    check_options(args, &kinds)?;
    let parts = kinds.into_iter().map(|kind| part(base, args, kind));
    let options = parts.reduce(AdapterOptions::and).expect("--kind names at least one kind").seed(seed);
    let adapter = Adapter::new(base, &options)?;
    let adapter =
        if args.prompt_init.is_empty() { adapter } else { adapter.prompt_from_tokens(base, &args.prompt_init)? };
    Ok((adapter, None))
}

/// An option that none of the kinds has is not ignored.
fn check_options(args: &NewAdapter, kinds: &[&'static dyn AdapterKind]) -> Result<(), Failure> {
    let sized =
        |classes: bool| kinds.iter().any(|kind| kind.size().is_some_and(|size| (size.name == CLASSES) == classes));
    let scaled = kinds.iter().any(|kind| kind.is_scaled());
    let head = sized(true);
    let unused = [
        ("--rank", args.rank.is_some() && !sized(false)),
        ("--rank-pattern", !args.rank_pattern.is_empty() && !sized(false)),
        ("--alpha", args.alpha.is_some() && !scaled),
        ("--alpha-pattern", !args.alpha_pattern.is_empty() && !scaled),
        ("--rslora", args.rslora && !scaled),
        ("--classes", args.classes.is_some() && !head),
        ("--head-on", args.head_on.is_some() && !head),
        (
            "--prompt-init",
            !args.prompt_init.is_empty() && !kinds.iter().any(|kind| kind.name() == adapters::Prompt.name()),
        ),
        ("--targets", args.targets.is_some() && kinds.len() == 1 && head),
    ];
    match unused.iter().find(|(_, unused)| *unused) {
        Some((option, _)) => {
            let names = kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join("+");
            Err(format!("{option} has no meaning for adapters of kind {names}; leave it out or add a kind that has it")
                .into())
        }
        None => Ok(()),
    }
}

fn part(base: &Base, args: &NewAdapter, kind: &'static dyn AdapterKind) -> AdapterOptions {
    let size = kind.size();
    if size.is_some_and(|size| size.name == CLASSES) {
        return AdapterOptions::head(args.head_on.as_deref(), args.classes.unwrap_or_else(|| kind.default_size(base)));
    }
    let mut options = AdapterOptions::kind(
        kind.name(),
        if size.is_some() { args.rank.unwrap_or_else(|| kind.default_size(base)) } else { 0 },
    );
    if size.is_some() {
        options = args.rank_pattern.iter().fold(options, |options, (glob, rank)| options.rank_at(glob, *rank));
    }
    if kind.is_scaled() {
        options = options.rslora(args.rslora);
        options = args.alpha.map_or(options.clone(), |alpha| options.alpha(alpha));
        options = args.alpha_pattern.iter().fold(options, |options, (glob, alpha)| options.alpha_at(glob, *alpha));
    }
    match &args.targets {
        Some(targets) => options.targets(Targets::split(targets)),
        None => options,
    }
}

fn more_classes(base: &Base, adapter: Adapter, classes: Option<u16>) -> Result<Adapter, Failure> {
    match classes {
        Some(classes) => Ok(adapter.with_classes(base, usize::from(classes))?),
        None => Ok(adapter),
    }
}
