//! What commands have in common: opening a base, a device, an adapter.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use inlay_runtime::base::MODEL_FILE;
use inlay_runtime::peft::Prefix;
use inlay_runtime::store::{AdapterId, AdapterStore, MAX_RECORD_BYTES, StoreKey};
use inlay_runtime::{Adapter, Base, Device, DeviceOptions, LogSink, Session, SessionOptions, Verify};

use crate::args::{AdapterArgs, DeviceArgs, StoredArgs};
use crate::output::{Failure, note};

/// Opens a base on the device that was asked for.
pub fn session(base: &Path, args: &DeviceArgs) -> Result<Session, Failure> {
    let base = Base::open(base, Verify::Full)?;
    if args.device == Device::Cpu && (args.vulkan_timeout.is_some() || args.cache_dir.is_some()) {
        note("--vulkan-timeout and --cache-dir have no effect with --device cpu");
    }
    let device = DeviceOptions {
        device: args.device.clone(),
        threads: args.threads.map(usize::from),
        cache_dir: args.cache_dir.clone(),
        vulkan_timeout: args.vulkan_timeout,
    };
    Ok(Session::new(base, SessionOptions { device, log: LogSink::new(|event| note(event)), ..Default::default() })?)
}

/// The adapter that was asked for, if any.
pub fn adapter(base: &Base, args: &AdapterArgs) -> Result<Option<Adapter>, Failure> {
    match (&args.adapter, &args.user, &args.store) {
        (Some(path), ..) => adapter_at(base, path).map(Some),
        (None, Some(user), Some(store)) => {
            let store = with_key(AdapterStore::open_existing(store)?, args.key_file.as_deref())?;
            let record = store.load(AdapterId { user: user.clone(), name: args.name.clone() })?;
            Ok(Some(Adapter::from_record(base, &record)?))
        }
        _ => Ok(None),
    }
}

/// The id of an adapter in a store.
pub fn id(args: &StoredArgs) -> AdapterId {
    AdapterId { user: args.user.clone(), name: args.name.clone() }
}

/// A store with the key in this file, if one was named.
pub fn with_key(store: AdapterStore, key_file: Option<&Path>) -> Result<AdapterStore, Failure> {
    let Some(path) = key_file else { return Ok(store) };
    let contents = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let key = StoreKey::parse(&contents).ok_or_else(|| {
        format!("{}: expected a key of {} bytes or as many hexadecimal digits twice", path.display(), StoreKey::BYTES)
    })?;
    Ok(store.with_key(key))
}

/// An adapter from a record, or from a PEFT folder.
pub fn adapter_at(base: &Base, path: &Path) -> Result<Adapter, Failure> {
    if path.is_dir() {
        let (adapter, prefix) = Adapter::from_peft(base, path)?;
        if !matches!(prefix, Prefix::None) {
            note(format_args!("{}: {prefix}", path.display()));
        }
        return Ok(adapter);
    }
    let record = read_record(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Adapter::from_record(base, &record).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Checks that a file that `option` names may be written: that it is none of `inputs`, nor a file of the base.
pub fn expect_no_input(option: &str, path: &Path, base: &Path, inputs: &[Option<&PathBuf>]) -> Result<(), Failure> {
    let Ok(written) = path.canonicalize() else { return Ok(()) };
    let is_written = |input: &Path| input.canonicalize().is_ok_and(|input| input == written);
    let of_base = [base.join(MODEL_FILE), base.join(MODEL_FILE).with_added_extension("data")];
    let inputs = inputs.iter().flatten().map(|input| input.as_path());
    match inputs.chain([base]).chain(of_base.iter().map(PathBuf::as_path)).any(is_written) {
        true => Err(format!("{option} {} is an input of this run; choose another file", path.display()).into()),
        false => Ok(()),
    }
}

/// The bytes of a file, as far as a record can be long, and one more, which no decoder accepts.
pub fn read_record(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
