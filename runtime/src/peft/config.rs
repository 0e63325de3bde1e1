//! `adapter_config.json`.

use serde_json::{Map, Value, json};

use inlay_format::points::MAX_RANK;

use super::{PeftError, PeftLora};

/// What a LoRA adapter's settings say about what it computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Config {
    pub rank: u16,
    pub alpha: f32,
    pub rslora: bool,
}

/// Settings that say where the adapter comes from, how it was trained or what it was called, and do not change what it
/// computes once A and B are known. `fan_in_fan_out` only tells PEFT how the base stores its own weight.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
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
        let rank = take(&mut settings, "r", Value::as_u64)?;
        let rank = u16::try_from(rank)
            .ok()
            .filter(|rank| (1..=MAX_RANK).contains(&u32::from(*rank)))
            .ok_or_else(|| unsupported("r", &json!(rank)))?;
        let alpha = take(&mut settings, "lora_alpha", Value::as_f64)? as f32;
        if !alpha.is_finite() || alpha == 0.0 {
            return Err(unsupported("lora_alpha", &json!(alpha)));
        }
        let rslora = match settings.remove("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(rslora)) => rslora,
            Some(other) => return Err(unsupported("use_rslora", &other)),
        };
        match settings.remove("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(init)) if PLAIN_INITS.contains(&init.as_str()) => {}
            Some(other) => return Err(unsupported("init_lora_weights", &other)),
        }
        match settings.into_iter().find(|(name, value)| !WITHOUT_EFFECT.contains(&name.as_str()) && !is_off(value)) {
            Some((name, value)) => Err(unsupported(&name, &value)),
            None => Ok(Self { rank, alpha, rslora }),
        }
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
    let settings = json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": adapter.rank,
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
    as_type: fn(&Value) -> Option<T>,
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
        assert_eq!(parse(|_| {}).unwrap(), Config { rank: 4, alpha: 8.0, rslora: false });
        let changed = parse(|settings| {
            settings.insert("use_rslora".into(), json!(true));
            settings.insert("r".into(), json!(9));
            settings.insert("lora_alpha".into(), json!(16));
            settings.insert("init_lora_weights".into(), json!("gaussian"));
            settings.insert("fan_in_fan_out".into(), json!(true));
        });
        assert_eq!(changed.unwrap(), Config { rank: 9, alpha: 16.0, rslora: true });
        let minimal = Config::parse(br#"{"peft_type":"LORA","r":1,"lora_alpha":0.5}"#).unwrap();
        assert_eq!(minimal, Config { rank: 1, alpha: 0.5, rslora: false });
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
            ("rank_pattern", json!({"fc1": 8})),
            ("alpha_pattern", json!({"fc1": 8})),
            ("modules_to_save", json!(["classifier"])),
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
