use std::path::Path;

use inlay_format::points::{LoraName, LoraTensor, Point, PointOp};
use inlay_runtime::{Adapter, Base};

use super::replace;
use crate::error::{Error, Result};

/// A model family of llama.cpp, and what it calls the linears of a layer.
#[derive(Debug)]
pub struct Architecture {
    /// Its name in `general.architecture`.
    pub name: &'static str,
    /// What stands before a layer's number in PyTorch's module path.
    layers: &'static str,
    /// What follows the number, and llama.cpp's name.
    modules: &'static [(&'static str, &'static str)],
    /// Whether llama.cpp stores the outputs of queries and keys with the halves of each head interleaved.
    interleaved: bool,
}

const DECODER: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Every model family that adapters can be written for.
pub static ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", layers: "layers", modules: DECODER, interleaved: true },
    Architecture { name: "qwen2", layers: "layers", modules: DECODER, interleaved: false },
    Architecture { name: "qwen3", layers: "layers", modules: DECODER, interleaved: false },
    Architecture { name: "gemma", layers: "layers", modules: DECODER, interleaved: false },
    Architecture { name: "gemma2", layers: "layers", modules: DECODER, interleaved: false },
    Architecture {
        name: "gpt2",
        layers: "h",
        modules: &[
            ("attn.c_attn", "attn_qkv"),
            ("attn.c_proj", "attn_output"),
            ("mlp.c_fc", "ffn_up"),
            ("mlp.c_proj", "ffn_down"),
        ],
        interleaved: false,
    },
    Architecture {
        name: "bert",
        layers: "layer",
        modules: &[
            ("attention.self.query", "attn_q"),
            ("attention.self.key", "attn_k"),
            ("attention.self.value", "attn_v"),
            ("attention.output.dense", "attn_output"),
            ("intermediate.dense", "ffn_up"),
            ("output.dense", "ffn_down"),
        ],
        interleaved: false,
    },
];

/// Attention heads of a model, of queries and of keys: needed where llama.cpp interleaves their outputs.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of queries.
    pub queries: u32,
    /// Heads of keys and values.
    pub keys: u32,
}

/// Writes a LoRA adapter as the GGUF file that llama.cpp loads beside a model of that architecture. Returns its size in
/// bytes.
///
/// # Errors
/// If a point is no linear that the architecture has, the heads are missing or do not divide the outputs, the adapter is
/// not only LoRA, or the disk does not take the file.
pub fn export_gguf(
    base: &Base,
    adapter: &Adapter,
    architecture: &Architecture,
    heads: Option<Heads>,
    out: &Path,
) -> Result<u64> {
    let alpha = adapter.parts().first().map_or(1.0, |part| part.settings().alpha);
    let mut tensors = Vec::new();
    for (binding, values) in adapter.tensors() {
        let refuse = |detail: &str| Error::NotInFile { parameter: binding.name.clone(), detail: detail.into() };
        let name = LoraName::parse(&binding.name).ok_or_else(|| refuse("GGUF adapters are LoRA only"))?;
        let point = base.points().iter().find(|point| point.path == name.path);
        let point = point.filter(|point| point.op == PointOp::Linear);
        let point = point.ok_or_else(|| refuse("GGUF adapters are of linears only"))?;
        let module = architecture.module(&point.path).ok_or_else(|| {
            let known: Vec<_> = architecture.modules.iter().map(|(path, _)| *path).collect();
            refuse(&format!("architecture {} has no such module, only {}", architecture.name, known.join(", ")))
        })?;
        let [rows, columns] = [binding.shape[0], binding.shape[1]];
        // PEFT's orientation: A [r, d_in], B [d_out, r].
        let mut values = transposed(values, rows, columns);
        unfold(base, point, name.tensor, &mut values)?;
        let suffix = match name.tensor {
            LoraTensor::A => "lora_a",
            LoraTensor::B => {
                // llama.cpp multiplies by alpha / r.
                let factor = binding.scale * rows as f32 / alpha;
                values.iter_mut().for_each(|value| *value *= factor);
                if let Some(heads) = architecture.heads(&module, heads, point)? {
                    values = interleaved(&values, heads, rows);
                }
                "lora_b"
            }
        };
        tensors.push(GgufTensor { name: format!("{module}.weight.{suffix}"), ne: [rows, columns], values });
    }
    replace(out, &encode(architecture.name, alpha, &tensors))
}

impl Architecture {
    /// The architecture of that name, if there is one.
    pub fn find(name: &str) -> Option<&'static Architecture> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// llama.cpp's name of a module, such as `blk.0.attn_q`.
    fn module(&self, path: &str) -> Option<String> {
        if path == "lm_head" {
            return Some("output".into());
        }
        let segments: Vec<&str> = path.split('.').collect();
        let at = segments.iter().position(|segment| *segment == self.layers)?;
        let layer: u32 = segments.get(at + 1)?.parse().ok()?;
        let module = segments.get(at + 2..)?.join(".");
        let (_, name) = self.modules.iter().find(|(known, _)| *known == module)?;
        Some(format!("blk.{layer}.{name}"))
    }

    /// The heads by which the outputs of a module are interleaved, if they are.
    fn heads(&self, module: &str, heads: Option<Heads>, point: &Point<String>) -> Result<Option<u32>> {
        let (is_query, is_key) = (module.ends_with("attn_q"), module.ends_with("attn_k"));
        if !self.interleaved || !(is_query || is_key) {
            return Ok(None);
        }
        let refuse = |detail: String| Error::NotInFile { parameter: point.path.clone(), detail };
        let heads = heads.ok_or_else(|| {
            refuse(format!("architecture {} interleaves the outputs of heads; give --heads and --kv-heads", self.name))
        })?;
        let heads = if is_query { heads.queries } else { heads.keys };
        if heads == 0 || !point.d_out.is_multiple_of(2 * heads) {
            return Err(refuse(format!("{} outputs do not make {heads} heads of even size", point.d_out)));
        }
        Ok(Some(heads))
    }
}

/// Takes out of A `[r, d_in]` or B `[d_out, r]` the factors that calibration put on the base's weight, which the model of the
/// other program does not have.
fn unfold(base: &Base, point: &Point<String>, tensor: LoraTensor, values: &mut [f32]) -> Result<()> {
    let (name, channels) = match tensor {
        LoraTensor::A => (&point.input_scale, point.d_in as usize),
        LoraTensor::B => (&point.row_scale, point.d_out as usize),
    };
    let Some(name) = name else { return Ok(()) };
    let detail = || Error::NotInFile {
        parameter: point.path.clone(),
        detail: format!("the factor {name:?} of its weight is damaged; export the base again"),
    };
    let factors = base.floats(name).filter(|factors| factors.len() == channels).ok_or_else(detail)?;
    let row = values.len() / channels.max(1);
    for (i, value) in values.iter_mut().enumerate() {
        *value /= if tensor == LoraTensor::A { factors[i % channels] } else { factors[i / row.max(1)] };
    }
    Ok(())
}

/// Rows of each head, first and second half in turns: row `2 j + s` is row `s size / 2 + j`.
fn interleaved(values: &[f32], heads: u32, columns: usize) -> Vec<f32> {
    let size = values.len() / columns / heads as usize;
    let rows = values.chunks_exact(columns).collect::<Vec<_>>();
    (0..rows.len())
        .flat_map(|row| {
            let (head, within) = (row / size, row % size);
            rows[head * size + within % 2 * (size / 2) + within / 2].iter().copied()
        })
        .collect()
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

struct GgufTensor {
    name: String,
    /// Sizes, the contiguous dimension first.
    ne: [usize; 2],
    values: Vec<f32>,
}

const VERSION: u32 = 3;
const ALIGNMENT_BYTES: usize = 32;
/// Numbers of metadata types.
const FLOAT32: u32 = 6;
const STRING: u32 = 8;
/// Number of the tensor type f32.
const F32: u32 = 0;

fn encode(architecture: &str, alpha: f32, tensors: &[GgufTensor]) -> Vec<u8> {
    let mut out = Vec::new();
    let string = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    out.extend(b"GGUF");
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    let texts = [("general.architecture", architecture), ("general.type", "adapter"), ("adapter.type", "lora")];
    out.extend((texts.len() as u64 + 1).to_le_bytes());
    for (key, value) in texts {
        string(&mut out, key);
        out.extend(STRING.to_le_bytes());
        string(&mut out, value);
    }
    string(&mut out, "adapter.lora.alpha");
    out.extend(FLOAT32.to_le_bytes());
    out.extend(alpha.to_le_bytes());
    let mut offset = 0;
    for tensor in tensors {
        string(&mut out, &tensor.name);
        out.extend((tensor.ne.len() as u32).to_le_bytes());
        tensor.ne.iter().for_each(|&ne| out.extend((ne as u64).to_le_bytes()));
        out.extend(F32.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += (4 * tensor.values.len()).next_multiple_of(ALIGNMENT_BYTES);
    }
    for tensor in tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        out.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT_BYTES), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_the_names_of_llama_cpp() {
        let name = |architecture: &str, path: &str| Architecture::find(architecture).unwrap().module(path);
        assert_eq!(name("llama", "model.layers.11.self_attn.q_proj").as_deref(), Some("blk.11.attn_q"));
        assert_eq!(name("bert", "encoder.layer.0.attention.output.dense").as_deref(), Some("blk.0.attn_output"));
        assert_eq!(name("bert", "bert.encoder.layer.3.output.dense").as_deref(), Some("blk.3.ffn_down"));
        assert_eq!(name("gpt2", "transformer.h.2.mlp.c_fc").as_deref(), Some("blk.2.ffn_up"));
        assert_eq!(name("llama", "lm_head").as_deref(), Some("output"));
        for path in ["classifier", "model.layers.x.self_attn.q_proj", "model.layers", "model.layers.1.router"] {
            assert_eq!(name("llama", path), None, "{path}");
        }
    }

    #[test]
    fn the_halves_of_heads_take_turns() {
        // Two heads of four rows and one column; numpy: reshape(2, 2, 2, 1).swapaxes(1, 2).reshape(8, 1).
        let rows: Vec<f32> = (0..8u8).map(f32::from).collect();
        assert_eq!(interleaved(&rows, 2, 1), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
