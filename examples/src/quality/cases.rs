use std::collections::HashMap;
use std::path::{Path, PathBuf};

use inlay_runtime::{HostTensor, LABELS};

use super::case::{Case, Family, Fold, Person, Samples};
use super::data;
use crate::Result;
use crate::watch;

/// Every case.
pub const ALL: &[Case] = &[VOWELS, WATCH, HANDWRITING, COMMANDS];

const WATCH: Case = Case {
    name: "watch",
    title: "Smartwatch exercises",
    about: "Ten real people, seven shoulder exercises, a 1-D CNN of 49,000 parameters (`examples/watch`). Each person calibrates on the \
            first quarter of every recording, 74 to 178 windows, and is tested on what comes later.",
    classes: 7,
    steps: 200,
    batch_size: 32,
    seeds: 2,
    rehearsing: 3,
    enrols: false,
    families: &[
        Family { kind: "lora", sizes: &[1], place: "everywhere", targets: "", export: &[] },
        Family { kind: "lora", sizes: RANKS, place: "linears", targets: "fc*", export: &[] },
        Family { kind: "lora", sizes: RANKS, place: "last layer", targets: "fc2", export: &[] },
        Family { kind: "lora-xs", sizes: &[4, 8], place: "linears", targets: "fc1", export: &["--basis", "{size}"] },
        Family {
            kind: "ia3",
            sizes: NONE,
            place: "linears",
            targets: "",
            export: &["--kinds", "lora,ia3", "--ia3-feedforward", "fc*"],
        },
        Family { kind: "bias", sizes: NONE, place: "everywhere", targets: "", export: &[] },
        Family { kind: "head", sizes: NONE, place: "last layer", targets: "", export: &[] },
        Family { kind: "lora+head", sizes: &[2], place: "linears", targets: "fc1", export: &[] },
        Family { kind: "dense", sizes: NONE, place: "last layer", targets: "fc2", export: &[] },
        FULL,
    ],
    folds: watch_folds,
};

const VOWELS: Case = Case {
    name: "vowels",
    title: "Spoken vowels",
    about: "Fifteen real speakers, eleven vowels, ten numbers a vowel, a perceptron of 5,600 parameters (`examples/vowels`). Each speaker says every vowel \
            three times to calibrate and is tested on three further times.",
    classes: 11,
    steps: 200,
    batch_size: 33,
    seeds: 3,
    rehearsing: 5,
    enrols: true,
    families: &[
        Family { kind: "lora", sizes: RANKS, place: "everywhere", targets: "", export: &[] },
        Family { kind: "lora", sizes: RANKS, place: "last layer", targets: "fc3", export: &[] },
        Family {
            kind: "lora-xs",
            sizes: &[4, 8],
            place: "all but first",
            targets: "fc2,fc3",
            export: &["--basis", "{size}"],
        },
        Family {
            kind: "ia3",
            sizes: NONE,
            place: "everywhere",
            targets: "",
            export: &["--kinds", "lora,ia3", "--ia3-feedforward", "fc*"],
        },
        Family { kind: "bias", sizes: NONE, place: "everywhere", targets: "", export: &[] },
        Family { kind: "head", sizes: NONE, place: "last layer", targets: "", export: &[] },
        Family { kind: "lora+head", sizes: &[1, 2, 4], place: "everywhere", targets: "fc1,fc2", export: &[] },
        Family { kind: "dense", sizes: NONE, place: "last layer", targets: "fc3", export: &[] },
        FULL,
    ],
    folds: vowels_folds,
};

const HANDWRITING: Case = Case {
    name: "handwriting",
    title: "Handwriting",
    about: "Sixteen handwriting fonts as writers, with a synthetic jitter; 47 characters, a CNN of 38,000 parameters (`examples/handwriting`). A writer gives every character \
            three times to calibrate and is tested on five further times.",
    classes: 47,
    steps: 80,
    batch_size: 47,
    seeds: 1,
    rehearsing: 2,
    enrols: true,
    families: &[
        Family { kind: "lora", sizes: &[2], place: "everywhere", targets: "", export: &[] },
        Family { kind: "lora", sizes: &[1, 4], place: "linears", targets: "fc*", export: &[] },
        Family { kind: "lora", sizes: RANKS, place: "last layer", targets: "fc2", export: &[] },
        Family { kind: "lora-xs", sizes: &[16], place: "linears", targets: "", export: &["--basis", "{size}"] },
        Family {
            kind: "ia3",
            sizes: NONE,
            place: "linears",
            targets: "",
            export: &["--kinds", "lora,ia3", "--ia3-feedforward", "fc*"],
        },
        Family { kind: "bias", sizes: NONE, place: "everywhere", targets: "", export: &[] },
        Family { kind: "head", sizes: NONE, place: "last layer", targets: "", export: &[] },
        Family { kind: "lora+head", sizes: &[2], place: "linears", targets: "fc1", export: &[] },
        Family { kind: "dense", sizes: NONE, place: "last layer", targets: "fc2", export: &[] },
        FULL,
    ],
    folds: || data::read(&folder("handwriting"), &folder("handwriting").join("people.npz")),
};

const COMMANDS: Case = Case {
    name: "commands",
    title: "Own commands",
    about: "Three invented people with twelve phrases of their own each, for 42 intents of a smart home; MiniLM-L6, 22.6 million parameters, with a linear classifier trained on \
            the templates of home-assistant-intents (`examples/commands`). A person calibrates on two wordings of each phrase, together with two standard sentences an intent \
            against forgetting, and is tested on two further wordings; the standard test has 161 sentences of templates that the base has not seen.",
    classes: 42,
    steps: 40,
    batch_size: 16,
    seeds: 1,
    rehearsing: 1,
    enrols: false,
    families: &[
        Family { kind: "lora", sizes: &[1, 4], place: "queries, values", targets: QUERY_VALUE, export: &[] },
        Family {
            kind: "lora",
            sizes: &[1],
            place: "all linears",
            targets: "*.encoder.layer.*,classifier",
            export: &[],
        },
        Family { kind: "lora", sizes: &[1, 4], place: "last layer", targets: "classifier", export: &[] },
        Family { kind: "lora-xs", sizes: &[16], place: "all linears", targets: "", export: &["--basis", "{size}"] },
        Family { kind: "ia3", sizes: NONE, place: "keys, values, ff", targets: "", export: &["--kinds", "lora,ia3"] },
        Family { kind: "bias", sizes: NONE, place: "everywhere", targets: "", export: &[] },
        Family { kind: "norm", sizes: NONE, place: "everywhere", targets: "", export: &[] },
        Family {
            kind: "bottleneck",
            sizes: &[4],
            place: "after each ff",
            targets: "",
            export: &["--kinds", "lora,bottleneck"],
        },
        Family { kind: "prompt", sizes: &[4], place: "before words", targets: "", export: &["--kinds", "lora,prompt"] },
        Family { kind: "head", sizes: NONE, place: "last layer", targets: "", export: &[] },
        Family { kind: "dense", sizes: NONE, place: "last layer", targets: "classifier", export: &[] },
        Family { kind: "dense", sizes: NONE, place: "queries, values", targets: QUERY_VALUE, export: &[] },
    ],
    folds: commands_folds,
};

const QUERY_VALUE: &str = "*.query,*.value";
const RANKS: &[u16] = &[1, 2, 4, 8];
/// Of kinds without a size.
const NONE: &[u16] = &[0];

/// Every weight and every bias: full fine-tuning.
pub const FULL: Family = Family { kind: "dense+bias", sizes: NONE, place: "everywhere", targets: "", export: &[] };

/// A folder beside the sources.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A file that a set-up script lays in `target`.
fn fetched(path: &str, script: &str) -> Result<PathBuf> {
    let path = folder("../target").join(path);
    if path.is_file() { Ok(path) } else { Err(format!("{} is missing; run {script}", path.display()).into()) }
}

fn commands_folds() -> Result<Vec<Fold>> {
    fetched("minilm/commands.onnx", "examples/commands/setup.sh")?;
    data::read(&folder("commands"), &folder("commands").join("people.npz"))
}

/// Rows of `vowel.dat`: a split of others, the speaker, their sex, ten features, the vowel.
fn vowels_folds() -> Result<Vec<Fold>> {
    const FEATURES: std::ops::Range<usize> = 3..13;
    let file = fetched("vowels/vowel.dat", "examples/vowels/setup.sh")?;
    let (mut x, mut labels, mut person, mut split) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut times: HashMap<(i64, i64), i64> = HashMap::new();
    for line in std::fs::read_to_string(&file)?.lines() {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [_, speaker, ..] = fields[..] else {
            return Err(format!("{}: \"{line}\" is no row", file.display()).into());
        };
        let vowel = fields.get(FEATURES.end).ok_or_else(|| format!("{}: \"{line}\" is too short", file.display()))?;
        let (speaker, vowel) = (speaker.parse()?, vowel.parse()?);
        for field in &fields[FEATURES] {
            x.push(field.parse::<f32>()?);
        }
        labels.push(vowel);
        person.push(speaker);
        let time = times.entry((speaker, vowel)).or_default();
        // Said twice to rehearse, once held back, then the test.
        split.push([0, 0, 1].get(*time as usize).copied().unwrap_or(2));
        *time += 1;
    }
    let ints = |values: Vec<i64>| HostTensor::new([values.len()], values);
    let x = HostTensor::new([labels.len(), FEATURES.len()], x);
    let arrays = [("x", x), (LABELS, ints(labels)), ("person", ints(person)), ("split", ints(split))];
    let named = arrays.into_iter().map(|(name, array)| Some((name.to_owned(), array?))).collect::<Option<Samples>>();
    data::folds(&folder("vowels"), named.ok_or("the features are not ten a row")?)
}

fn watch_folds() -> Result<Vec<Fold>> {
    let data = watch::data::Data::read(&watch::data::folder())?;
    let samples = |windows: watch::data::Windows| Ok::<Samples, crate::Error>(windows.into_arrays()?.into());
    let person = |person: &u32| {
        let windows = data.calibration(*person);
        let (rehearsal, held_back) = windows.hold_back(data.recipe.held_back_percent);
        Ok(Person {
            calibration: samples(windows)?,
            rehearsal: samples(rehearsal)?,
            held_back: samples(held_back)?,
            test: samples(data.test(*person))?,
            standard: None,
        })
    };
    let fold = |fold: &watch::data::Fold| {
        let people = fold.people.iter().map(person).collect::<Result<_>>()?;
        Ok(Fold { model: folder("watch").join(&fold.model), people })
    };
    data.recipe.folds.iter().map(fold).collect()
}
