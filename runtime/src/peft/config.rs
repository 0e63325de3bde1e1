//! `adapter_config.json`.

use std::collections::{BTreeMap, BTreeSet};

use regex_automata::meta::Regex;
use serde_json::{Map, Value, json};

use inlay_format::points::MAX_RANK;

use super::{LoraTensors, PeftError, PeftLora};

/// What a LoRA adapter's settings say about what it computes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    pub rank: u16,
    pub alpha: f32,
    pub rslora: bool,
    /// Ranks of modules whose paths end as a regular expression says.
    pub rank_pattern: Vec<(String, u16)>,
    /// Alphas of such modules.
    pub alpha_pattern: Vec<(String, f32)>,
    /// Modules whose own parameters are saved.
    pub saved: Vec<String>,
    /// Whether the base stores weights as [in, out].
    pub fan_in_fan_out: bool,
}

/// Settings that say where the adapter comes from, how it was trained or what it was called, and do not change what it
/// computes once A and B are known.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Ways to start that leave the base's weights as they are. Others (PiSSA, OLoRA, CorDA, LoftQ, ...) belong to changed weights.
const PLAIN_INITS: &[&str] = &["gaussian", "orthogonal", "eva"];

impl Config {
    pub fn parse(json: &[u8]) -> Result<Self, PeftError> {
        let mut settings: Map<String, Value> = serde_json::from_slice(json).map_err(PeftError::Config)?;
        match settings.remove("peft_type") {
            Some(Value::String(peft_type)) if peft_type == "LORA" => {}
            Some(other) => return Err(unsupported("peft_type", &other)),
            None => return Err(PeftError::MissingSetting { name: "peft_type" }),
        }
        let rank = |value: &Value| {
            let rank = u16::try_from(value.as_u64()?).ok()?;
            (1..=MAX_RANK).contains(&u32::from(rank)).then_some(rank)
        };
        let alpha = |value: &Value| Some(value.as_f64()? as f32).filter(|alpha| alpha.is_finite() && *alpha != 0.0);
        let rank_pattern = patterns(&mut settings, "rank_pattern", rank)?;
        let alpha_pattern = patterns(&mut settings, "alpha_pattern", alpha)?;
        let rank = take(&mut settings, "r", rank)?;
        let alpha = take(&mut settings, "lora_alpha", alpha)?;
        let [rslora, fan_in_fan_out] = [flag(&mut settings, "use_rslora")?, flag(&mut settings, "fan_in_fan_out")?];
        let saved = match settings.remove("modules_to_save") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| unsupported("modules_to_save", &value))?,
        };
        match settings.remove("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(init)) if PLAIN_INITS.contains(&init.as_str()) => {}
            Some(other) => return Err(unsupported("init_lora_weights", &other)),
        }
        match settings.into_iter().find(|(name, value)| !WITHOUT_EFFECT.contains(&name.as_str()) && !is_off(value)) {
            Some((name, value)) => Err(unsupported(&name, &value)),
            None => Ok(Self { rank, alpha, rslora, rank_pattern, alpha_pattern, saved, fan_in_fan_out }),
        }
    }

    /// Rank and alpha at a module whose A has `rows` rows.
    ///
    /// # Errors
    /// When a pattern is no regular expression, or several match and say different things.
    pub fn at(&self, module: &str, rows: usize) -> Result<(u16, f32), PeftError> {
        let ranks = matching("rank_pattern", &self.rank_pattern, module)?;
        // Of several patterns PEFT takes the first, in an order that JSON does not have; the tensor tells which it was.
        let rank = ranks.iter().copied().find(|rank| usize::from(*rank) == rows).or(ranks.first().copied());
        let alphas = matching("alpha_pattern", &self.alpha_pattern, module)?;
        if let [first, second, ..] = alphas.as_slice() {
            let value = json!(self.alpha_pattern.iter().cloned().collect::<BTreeMap<_, _>>());
            debug_assert_ne!(first, second);
            return Err(unsupported("alpha_pattern", &value));
        }
        Ok((rank.unwrap_or(self.rank), alphas.first().copied().unwrap_or(self.alpha)))
    }
}

/// The different values of the patterns that match a module, as PEFT matches: the whole path, or its end after a dot.
fn matching<T: Copy + PartialEq>(
    setting: &'static str,
    patterns: &[(String, T)],
    module: &str,
) -> Result<Vec<T>, PeftError> {
    let mut values = Vec::new();
    for (pattern, value) in patterns {
        let refused = |reason: String| PeftError::Pattern { setting, pattern: pattern.clone(), reason };
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(refused(format!("it is longer than {MAX_PATTERN_BYTES} bytes")));
        }
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|error| refused(error.to_string()))?;
        if regex.is_match(module) && !values.contains(value) {
            values.push(*value);
        }
    }
    Ok(values)
}

const MAX_PATTERN_BYTES: usize = 1000;

/// A setting that has a value for each of several patterns.
fn patterns<T>(
    settings: &mut Map<String, Value>,
    name: &'static str,
    as_type: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>, PeftError> {
    let value = match settings.remove(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value,
    };
    let read = |patterns: &Map<String, Value>| {
        patterns.iter().map(|(pattern, value)| Some((pattern.clone(), as_type(value)?))).collect::<Option<Vec<_>>>()
    };
    value.as_object().and_then(read).ok_or_else(|| unsupported(name, &value))
}

fn flag(settings: &mut Map<String, Value>, name: &str) -> Result<bool, PeftError> {
    match settings.remove(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(unsupported(name, &other)),
    }
}

/// What kind of adapter the settings are of.
pub(super) fn peft_type(json: &[u8]) -> Result<String, PeftError> {
    let mut settings: Map<String, Value> = serde_json::from_slice(json).map_err(PeftError::Config)?;
    take(&mut settings, "peft_type", |value| value.as_str().map(str::to_owned))
}

/// Settings of (IA)3 that do not change what it computes: which modules it is at, and of what sort, the tensors say.
const IA3_WITHOUT_EFFECT: &[&str] = &["peft_type", "feedforward_modules", "init_ia3_weights"];

/// Checks that the settings are of a plain (IA)3 adapter.
pub(super) fn expect_ia3(json: &[u8]) -> Result<(), PeftError> {
    let found = peft_type(json)?;
    if found != "IA3" {
        return Err(unsupported("peft_type", &json!(found)));
    }
    let settings: Map<String, Value> = serde_json::from_slice(json).map_err(PeftError::Config)?;
    let effect = |name: &str| !WITHOUT_EFFECT.contains(&name) && !IA3_WITHOUT_EFFECT.contains(&name);
    match settings.iter().find(|(name, value)| effect(name) && !is_off(value)) {
        Some((name, value)) => Err(unsupported(name, value)),
        None => Ok(()),
    }
}

/// The settings of an (IA)3 adapter at these modules, for PEFT to read.
pub(super) fn written_ia3(targets: &[&str], feedforward: &[&str]) -> String {
    let settings = json!({
        "base_model_name_or_path": null,
        "fan_in_fan_out": false,
        "feedforward_modules": feedforward,
        "inference_mode": true,
        "init_ia3_weights": true,
        "modules_to_save": null,
        "peft_type": "IA3",
        "target_modules": targets,
        "task_type": null,
    });
    format!("{settings:#}\n")
}

/// The settings of `adapter`, for PEFT to read.
pub(super) fn written(adapter: &PeftLora) -> String {
    let targets: Vec<&str> = adapter.points.iter().map(|point| point.path.as_str()).collect();
    let (rank, alpha) = adapter.points.first().map_or((1, 1.0), |point| (point.rank, point.alpha));
    // PEFT's patterns are regular expressions for the ends of paths; these are for one path.
    let anchored = |point: &LoraTensors| format!("^{}", point.path.replace('.', r"\."));
    let ranks = adapter.points.iter().filter(|point| point.rank != rank).map(|point| (anchored(point), point.rank));
    let alphas = adapter.points.iter().filter(|point| point.alpha != alpha).map(|point| (anchored(point), point.alpha));
    let (ranks, alphas): (BTreeMap<_, _>, BTreeMap<_, _>) = (ranks.collect(), alphas.collect());
    let saved: BTreeSet<&str> =
        adapter.saved.iter().map(|tensor| tensor.name.rsplit_once('.').map_or("", |(module, _)| module)).collect();
    let settings = json!({
        "alpha_pattern": alphas,
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": targets,
        "task_type": null,
        "use_dora": false,
        "use_rslora": adapter.rslora,
    });
    format!("{settings:#}\n")
}

fn take<T>(
    settings: &mut Map<String, Value>,
    name: &'static str,
    as_type: impl Fn(&Value) -> Option<T>,
) -> Result<T, PeftError> {
    let value = settings.remove(name).ok_or(PeftError::MissingSetting { name })?;
    as_type(&value).ok_or_else(|| unsupported(name, &value))
}

/// Whether a setting is switched off, as PEFT writes those that were not asked for.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn unsupported(name: &str, value: &Value) -> PeftError {
    const SHOWN: usize = 60;
    let mut value: String = value.to_string();
    if value.chars().count() > SHOWN {
        value = value.chars().take(SHOWN).chain("...".chars()).collect();
    }
    PeftError::Setting { name: name.into(), value }
}

#[cfg(test)]
mod tests {
    use super::super::CONFIG_FILE;
    use super::*;

    fn parse(change: impl FnOnce(&mut Map<String, Value>)) -> Result<Config, PeftError> {
        let mut settings: Map<String, Value> =
            serde_json::from_slice(include_bytes!("../../../tests/golden/mlp/adapter/adapter_config.json")).unwrap();
        change(&mut settings);
        Config::parse(Value::Object(settings).to_string().as_bytes())
    }

    #[test]
    fn what_peft_writes_is_read() {
        let plain = Config {
            rank: 4,
            alpha: 8.0,
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            saved: Vec::new(),
            fan_in_fan_out: false,
        };
        assert_eq!(parse(|_| {}).unwrap(), plain);
        let changed = parse(|settings| {
            settings.insert("use_rslora".into(), json!(true));
            settings.insert("r".into(), json!(9));
            settings.insert("lora_alpha".into(), json!(16));
            settings.insert("init_lora_weights".into(), json!("gaussian"));
            settings.insert("fan_in_fan_out".into(), json!(true));
            settings.insert("rank_pattern".into(), json!({"fc1": 3}));
            settings.insert("alpha_pattern".into(), json!({"fc1": 0.5}));
            settings.insert("modules_to_save".into(), json!(["head"]));
        });
        let expected = Config {
            rank: 9,
            alpha: 16.0,
            rslora: true,
            rank_pattern: vec![("fc1".into(), 3)],
            alpha_pattern: vec![("fc1".into(), 0.5)],
            saved: vec!["head".into()],
            fan_in_fan_out: true,
        };
        assert_eq!(changed.unwrap(), expected);
        let minimal = Config::parse(br#"{"peft_type":"LORA","r":1,"lora_alpha":0.5}"#).unwrap();
        assert_eq!(minimal, Config { rank: 1, alpha: 0.5, ..plain });
    }

    #[test]
    fn settings_that_change_the_adapter_are_refused_by_name() {
        let cases = [
            ("peft_type", json!("IA3")),
            ("r", json!(0)),
            ("r", json!(1025)),
            ("r", json!("4")),
            ("lora_alpha", json!(0.0)),
            ("lora_alpha", json!(1e300)),
            ("use_rslora", json!("yes")),
            ("rank_pattern", json!({"fc1": 0})),
            ("rank_pattern", json!([8])),
            ("alpha_pattern", json!({"fc1": "8"})),
            ("alpha_pattern", json!({"fc1": 0.0})),
            ("modules_to_save", json!("classifier")),
            ("fan_in_fan_out", json!(1)),
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("use_dora", json!(true)),
            ("use_qalora", json!(true)),
            ("layer_replication", json!([[0, 4]])),
            ("trainable_token_indices", json!([1])),
            ("target_parameters", json!(["experts.weight"])),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("a_setting_of_a_later_peft", json!(1)),
        ];
        for (name, value) in cases {
            let refused = parse(|settings| drop(settings.insert(name.into(), value.clone()))).unwrap_err();
            assert!(matches!(&refused, PeftError::Setting { name: named, .. } if named == name), "{name}: {refused}");
            assert!(refused.to_string().contains(name) && refused.to_string().contains(CONFIG_FILE), "{refused}");
        }
        for name in ["peft_type", "r", "lora_alpha"] {
            let refused = parse(|settings| drop(settings.remove(name))).unwrap_err();
            assert!(matches!(refused, PeftError::MissingSetting { name: named } if named == name), "{refused}");
        }
        for json in ["", "[]", "{", "{\"r\": NaN}"] {
            assert!(matches!(Config::parse(json.as_bytes()), Err(PeftError::Config(_))), "{json}");
        }
    }
}
