//! Compiles `devices/src/kernels/*.comp` to the committed SPIR-V beside them.
//!
//! `cargo run -p shaders` writes `devices/src/kernels/spirv/*.spv` and the list `mod.rs` of that folder; with `--check`
//! it writes nothing and fails when a byte would change. Output depends on the sources only.
//!
//! A source that includes `"scheme.glsl"` is compiled once per quantization scheme, to `<kernel>.<scheme>.spv`: the
//! include stands for `runtime/format/src/quant/<scheme>.glsl`. Every other include is a file beside the source.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use glslang::error::GlslangError;
use glslang::include::{IncludeHandler, IncludeResult, IncludeType};
use glslang::{
    Compiler, CompilerOptions, GlslProfile, ShaderInput, ShaderMessage, ShaderSource, ShaderStage, SourceLanguage,
    SpirvVersion, Target, VulkanVersion,
};

/// The include that stands for each quantization scheme in turn.
const SCHEME_INCLUDE: &str = "scheme.glsl";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{name}: {source}")]
    Compile { name: String, source: GlslangError },
    #[error("the GLSL compiler did not start")]
    NoCompiler,
    #[error("out of date: {}; run `cargo run -p shaders`", .0.join(", "))]
    OutOfDate(Vec<String>),
}

fn main() -> ExitCode {
    let check = match env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        other => {
            eprintln!("unexpected arguments {other:?}; usage: shaders [--check]");
            return ExitCode::from(2);
        }
    };
    match run(check) {
        Ok(count) => {
            eprintln!("{count} shaders {}", if check { "up to date" } else { "compiled" });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Compiles everything, then writes or compares; gives the number of SPIR-V modules.
fn run(check: bool) -> Result<usize, Error> {
    let devices = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kernels = devices.join("src/kernels");
    let quant = devices.join("../runtime/format/src/quant");
    let out = kernels.join("spirv");

    let modules = compile_all(&kernels, &quant)?;
    let mut files: BTreeMap<String, Vec<u8>> =
        modules.iter().map(|(name, words)| (format!("{name}.spv"), bytes(words))).collect();
    files.insert("mod.rs".to_owned(), list(modules.keys()).into_bytes());
    let stale: Vec<String> = names_in(&out)?.into_iter().filter(|name| !files.contains_key(name)).collect();

    if check {
        let changed = files
            .iter()
            .filter(|(name, bytes)| fs::read(out.join(name)).ok().as_ref() != Some(bytes))
            .map(|(name, _)| name.clone());
        let differing: Vec<String> = changed.chain(stale).collect();
        return if differing.is_empty() { Ok(modules.len()) } else { Err(Error::OutOfDate(differing)) };
    }
    let io = |path: &Path, result: io::Result<()>| result.map_err(|source| Error::Io { path: path.to_owned(), source });
    io(&out, fs::create_dir_all(&out))?;
    for (name, bytes) in &files {
        let path = out.join(name);
        if fs::read(&path).ok().as_ref() != Some(bytes) {
            io(&path, fs::write(&path, bytes))?;
        }
    }
    for name in stale {
        let path = out.join(name);
        io(&path, fs::remove_file(&path))?;
    }
    Ok(modules.len())
}

/// Every module by name: `<kernel>` or `<kernel>.<scheme>`.
fn compile_all(kernels: &Path, quant: &Path) -> Result<BTreeMap<String, Vec<u32>>, Error> {
    let compiler = Compiler::acquire().ok_or(Error::NoCompiler)?;
    let schemes = stems(quant, "glsl")?;
    let mut modules = BTreeMap::new();
    for kernel in stems(kernels, "comp")? {
        let path = kernels.join(format!("{kernel}.comp"));
        let source = fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let variants: Vec<Option<&str>> = if source.contains(&format!("#include \"{SCHEME_INCLUDE}\"")) {
            schemes.iter().map(|scheme| Some(scheme.as_str())).collect()
        } else {
            vec![None]
        };
        for scheme in variants {
            let name = scheme.map_or_else(|| kernel.clone(), |scheme| format!("{kernel}.{scheme}"));
            let mut includes = Includes { kernels, scheme: scheme.map(|scheme| quant.join(format!("{scheme}.glsl"))) };
            let words = compile(compiler, &source, &mut includes)
                .map_err(|source| Error::Compile { name: name.clone(), source })?;
            modules.insert(name, without_debug(&words));
        }
    }
    Ok(modules)
}

fn compile(compiler: &Compiler, source: &str, includes: &mut Includes) -> Result<Vec<u32>, GlslangError> {
    let source = ShaderSource::from(source);
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_1, spirv_version: SpirvVersion::SPIRV1_3 },
        version_profile: Some((450, GlslProfile::None)),
        messages: ShaderMessage::DEFAULT,
    };
    let defines: Option<&[(&str, Option<&str>)]> = None;
    let input = ShaderInput::new(&source, ShaderStage::Compute, &options, defines, Some(includes))?;
    compiler.create_shader(input)?.compile()
}

/// Resolves `#include`.
struct Includes<'a> {
    kernels: &'a Path,
    scheme: Option<PathBuf>,
}

impl IncludeHandler for Includes<'_> {
    fn include(&mut self, _: IncludeType, header: &str, _: &str, _: usize) -> Option<IncludeResult> {
        let path = if header == SCHEME_INCLUDE { self.scheme.clone()? } else { self.kernels.join(header) };
        let data = fs::read_to_string(path).ok()?;
        Some(IncludeResult { name: header.to_owned(), data })
    }
}

/// The module without names and source text: they take a fifth of its bytes and no device reads them.
fn without_debug(words: &[u32]) -> Vec<u32> {
    const HEADER_WORDS: usize = 5;
    const DEBUG_OPCODES: [u32; 8] = [2, 3, 4, 5, 6, 7, 8, 330]; // OpSourceContinued .. OpLine, OpModuleProcessed
    let (header, mut rest) = words.split_at(HEADER_WORDS);
    let mut kept = header.to_vec();
    while let Some(&first) = rest.first() {
        let (instruction, tail) = rest.split_at((first >> 16) as usize);
        if !DEBUG_OPCODES.contains(&(first & 0xffff)) {
            kept.extend_from_slice(instruction);
        }
        rest = tail;
    }
    kept
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The Rust list of the compiled modules.
fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut text = String::from(
        "//! The compiled compute shaders, by name. Written by `cargo run -p shaders`; do not edit.\n\n\
         /// `(name, SPIR-V)` of every module: `<kernel>`, or `<kernel>.<scheme>` for one per quantization scheme.\n\
         pub const ALL: &[(&str, &[u8])] = &[\n",
    );
    for name in names {
        writeln!(text, "    (\"{name}\", include_bytes!(\"{name}.spv\")),").expect("writing to a string cannot fail");
    }
    text.push_str("];\n");
    text
}

/// Sorted file names without their extension `ext`.
fn stems(folder: &Path, ext: &str) -> Result<Vec<String>, Error> {
    let suffix = format!(".{ext}");
    Ok(names_in(folder)?.iter().filter_map(|name| name.strip_suffix(&suffix)).map(str::to_owned).collect())
}

/// Sorted file names of a folder; none when it does not exist.
fn names_in(folder: &Path) -> Result<Vec<String>, Error> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
