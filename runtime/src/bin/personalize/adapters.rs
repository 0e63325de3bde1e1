use std::fmt::Write;
use std::path::Path;

use inlay_format::record::{Part, Record};
use inlay_runtime::adapters::KINDS;
use inlay_runtime::store::{AdapterId, AdapterStore};
use serde::Serialize;

use crate::args::{Adapters, StoreArgs, StoredArgs};
use crate::output::{self, Failure};
use crate::run;

#[derive(Serialize)]
struct Listing<'a> {
    store: &'a Path,
    adapters: Vec<Listed>,
    swept: usize,
}

#[derive(Serialize)]
struct Listed {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Whole { bytes: usize, version: u8, base: String, parts: Vec<ListedPart>, previous: bool },
    Refused { error: String },
}

#[derive(Serialize)]
struct ListedPart {
    kind: String,
    dtype: &'static str,
    rank: u16,
    points: usize,
    parameters: usize,
}

#[derive(Serialize)]
struct Done<'a> {
    done: &'static str,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
}

/// `personalize adapters`.
pub fn run(args: &Adapters) -> Result<(), Failure> {
    match args {
        Adapters::List { store, json } => list(&open(store)?, json.json),
        Adapters::Export { adapter, out, json } => {
            let (store, id) = find(adapter)?;
            store.export(&id, out)?;
            done("exported", &id, Some(out), json.json)
        }
        Adapters::Import { adapter, from, json } => {
            // What cannot be imported creates no store.
            let record = run::read_record(from).map_err(|error| format!("{}: {error}", from.display()))?;
            Record::decode(&record).map_err(|error| format!("{}: {error}", from.display()))?;
            let store = AdapterStore::open(&adapter.store.store)?;
            let (store, id) = (run::with_key(store, adapter.store.key_file.as_deref())?, run::id(adapter));
            store.import(&id, from)?;
            done("imported", &id, Some(from), json.json)
        }
        Adapters::Delete { adapter, json } => {
            let (store, id) = find(adapter)?;
            store.delete(&id)?;
            done("deleted", &id, None, json.json)
        }
        Adapters::Rollback { adapter, json } => {
            let (store, id) = find(adapter)?;
            store.rollback(&id)?;
            done("rolled back", &id, None, json.json)
        }
    }
}

fn open(args: &StoreArgs) -> Result<AdapterStore, Failure> {
    run::with_key(AdapterStore::open_existing(&args.store)?, args.key_file.as_deref())
}

fn find(args: &StoredArgs) -> Result<(AdapterStore, AdapterId), Failure> {
    Ok((open(&args.store)?, run::id(args)))
}

fn done(what: &'static str, id: &AdapterId, file: Option<&Path>, json: bool) -> Result<(), Failure> {
    let mut text = format!("{what}: {id}");
    if let Some(file) = file {
        write!(text, ", {}", file.display())?;
    }
    output::result(json, &Done { done: what, user: &id.user, name: id.name.as_deref(), file }, &text)
}

fn list(store: &AdapterStore, json: bool) -> Result<(), Failure> {
    // A store that cannot be written can be listed.
    let swept = store.sweep().unwrap_or_else(|error| {
        output::note(format_args!("no leftover files were removed: {}", output::with_causes(&error)));
        0
    });
    let adapters: Vec<Listed> = store
        .adapters()?
        .into_iter()
        .map(|id| Listed { found: look_at(store, &id), user: id.user, name: id.name })
        .collect();
    let mut text = format!("{} adapters in {}", adapters.len(), store.dir().display());
    for Listed { user, name, found } in &adapters {
        let name = name.as_ref().map(|name| format!(" ({name:?})")).unwrap_or_default();
        write!(text, "\n{user:?}{name}: ")?;
        match found {
            Found::Whole { bytes, base, parts, previous, .. } => {
                let parts: Vec<String> = parts
                    .iter()
                    .map(|p| format!("{} r={} {} at {} points", p.kind, p.rank, p.dtype, p.points))
                    .collect();
                let kept = if *previous { ", one before it" } else { "" };
                write!(text, "{bytes} bytes, {}, base {}..{kept}", parts.join(" + "), &base[..8])?;
            }
            Found::Refused { error } => write!(text, "{error}")?,
        }
    }
    if swept > 0 {
        write!(text, "\n{swept} leftover files removed")?;
    }
    let refused = |listed: &Listed| matches!(listed.found, Found::Refused { .. });
    let all_refused = !adapters.is_empty() && adapters.iter().all(refused);
    output::result(json, &Listing { store: store.dir(), adapters, swept }, &text)?;
    match all_refused {
        true => Err("none of these adapters can be read; their errors say why".into()),
        false => Ok(()),
    }
}

fn look_at(store: &AdapterStore, id: &AdapterId) -> Found {
    let read = || -> Result<Found, Failure> {
        let bytes = store.load(id)?;
        let record = Record::decode(&bytes)?;
        Ok(Found::Whole {
            bytes: bytes.len(),
            version: record.version(),
            base: record.base().to_string(),
            parts: record.parts().map(|part| describe(&part)).collect(),
            previous: store.load_previous(id).is_ok_and(|previous| previous.is_some()),
        })
    };
    read().unwrap_or_else(|error| Found::Refused { error: output::with_causes(error.as_ref()) })
}

fn describe(part: &Part<'_>) -> ListedPart {
    let header = part.header();
    let kind = KINDS.iter().find(|kind| kind.id() == header.kind);
    ListedPart {
        kind: kind.map_or_else(|| format!("kind {}", header.kind), |kind| kind.name().to_owned()),
        dtype: header.dtype.name(),
        rank: header.rank,
        points: part.points().len(),
        parameters: part.points().flat_map(|point| point.tensors()).map(|tensor| tensor.elements()).sum(),
    }
}
