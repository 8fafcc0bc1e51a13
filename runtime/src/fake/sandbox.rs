//! The fake's sandboxes: files in a map, commands of the fake's shell.

use super::{Engine, process};
use crate::{ExecSpec, RuntimeError, Sandbox, Session};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use std::{collections::BTreeMap, io::Read, sync::Arc};

pub(super) struct FakeSandbox {
    pub(super) engine: Arc<Engine>,
    pub(super) id: String,
}

impl FakeSandbox {
    fn files<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Bytes>) -> T) -> Result<T, RuntimeError> {
        self.engine.up()?;
        let mut state = self.engine.state();
        let gone = || RuntimeError::NotFound(format!("build container {} is gone", self.id));
        state.sandboxes.get_mut(&self.id).map(|s| f(&mut s.files)).ok_or_else(gone)
    }
}

fn join(path: &str, name: &str) -> String {
    format!("{}/{}", path.trim_end_matches('/'), name.trim_start_matches("./").trim_end_matches('/'))
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn put(&self, path: &str, mut tar: BoxStream<'static, std::io::Result<Bytes>>) -> Result<(), RuntimeError> {
        assert!(path.starts_with('/'), "contract: {path:?} is no absolute path");
        let mut bytes = Vec::new();
        while let Some(piece) = tar.next().await {
            bytes.extend(piece.map_err(|e| RuntimeError::Refused(format!("reading the archive: {e}")))?);
        }
        let mut archive = tar::Archive::new(&bytes[..]);
        let bad = |e: std::io::Error| RuntimeError::Refused(format!("unpacking files at {path}: {e}"));
        for entry in archive.entries().map_err(bad)? {
            let mut entry = entry.map_err(bad)?;
            let name = join(path, &entry.path().map_err(bad)?.to_string_lossy());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(bad)?;
            if entry.header().entry_type().is_file() {
                self.files(|f| f.insert(name, content.into()))?;
            }
        }
        self.files(|_| ())
    }

    async fn exec(&self, exec: ExecSpec) -> Result<Session, RuntimeError> {
        let files = self.files(|f| f.clone())?;
        let allowed = process::Allowed { stdin: exec.stdin, tty: exec.tty.is_some(), needs_client: false };
        Ok(process::session(super::shell_line(&exec)?, files, allowed, || {}))
    }

    async fn get(&self, path: &str) -> Result<BoxStream<'static, Result<Bytes, RuntimeError>>, RuntimeError> {
        let below = format!("{}/", path.trim_end_matches('/'));
        let found: Vec<_> = self.files(|f| {
            let inside = f.iter().filter(|(name, _)| *name == path || name.starts_with(&below));
            inside.map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
        })?;
        if found.is_empty() {
            return Err(RuntimeError::NotFound(format!("{path} is not in build container {}", self.id)));
        }
        // Like the engine: names begin with the last part of the path.
        let parent = path.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent).len() + 1;
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in found {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let added = archive.append_data(&mut header, &name[parent..], &bytes[..]);
            added.map_err(|e| RuntimeError::Refused(format!("packing {name}: {e}")))?;
        }
        let bytes = archive.into_inner().map_err(|e| RuntimeError::Refused(format!("packing {path}: {e}")))?;
        Ok(futures_util::stream::iter([Ok(Bytes::from(bytes))]).boxed())
    }

    async fn disk_used(&self) -> Result<u64, RuntimeError> {
        self.files(|f| f.values().map(|b| b.len() as u64).sum())
    }

    async fn destroy(&self) -> Result<(), RuntimeError> {
        self.engine.up()?;
        self.engine.state().sandboxes.remove(&self.id);
        Ok(())
    }
}
