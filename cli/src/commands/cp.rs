//! `flex cp`: files to and from an instance, as tar streams through `tar` inside it: with the app's own rights, and seeing
//! what the app sees.
//!
//! Invariants: an archive from an instance writes below its destination and nowhere else, whatever is in it: no absolute
//! path, no `..`, no link that leads out, no device, no set-user-ID bit. No user text is ever part of a shell's line.

use super::exec;
use crate::args::Cp;
use crate::client::Socket;
use crate::context::Context;
use crate::error::{CliError, Result, while_doing};
use crate::output;
use flex_api::CreateExec;
use flex_api::run::{RunControl, RunEnd, STDERR};
use futures_util::{SinkExt, StreamExt};
use indicatif::ProgressBar;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Component, Path, PathBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

/// Bytes in one message.
const PIECE: usize = 64 << 10;

/// `web.1:/path`, where that is what it is.
fn remote(text: &str) -> Option<(&str, &str)> {
    let (instance, path) = text.split_once(':')?;
    // A local path may hold a colon behind a slash.
    if instance.contains('/') { None } else { Some((if instance.is_empty() { "web.1" } else { instance }, path)) }
}

pub async fn run(cx: &Context, args: &Cp) -> Result<()> {
    let wrong = || {
        CliError::usage("One of the two is in an instance, the other here.")
            .hint("flex cp web.1:/app/log.txt .")
            .hint("flex cp ./data.csv web.1:/tmp/")
    };
    match (remote(&args.from), remote(&args.to)) {
        (Some((instance, path)), None) if !path.is_empty() => fetch(cx, instance, path, Path::new(&args.to)).await,
        (None, Some((instance, path))) => give(cx, Path::new(&args.from), instance, path).await,
        _ => Err(wrong()),
    }
}

async fn tar(cx: &Context, instance: &str, words: &[&str]) -> Result<Socket> {
    let argv = words.iter().map(|w| (*w).to_owned()).collect();
    exec::open(cx, instance, &CreateExec { argv, ..CreateExec::default() }).await
}

/// The directory and the name in it; `/` and `..` have none.
fn split(path: &str) -> Result<(String, String)> {
    let trimmed = path.trim_end_matches('/');
    let (dir, name) = trimmed.rsplit_once('/').map_or((".", trimmed), |(d, n)| (if d.is_empty() { "/" } else { d }, n));
    if name.is_empty() || name == "." || name == ".." {
        return Err(CliError::usage(format!("{path} names no file or directory to copy.")));
    }
    Ok((dir.to_owned(), name.to_owned()))
}

fn progress() -> ProgressBar {
    if io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec}") {
            bar.set_style(style);
        }
        bar
    } else {
        ProgressBar::hidden()
    }
}

/// What a program in the instance said on standard error goes to ours; how it ended.
fn finished(instance: &str, end: &RunEnd) -> Result<()> {
    match end {
        RunEnd::Exit(0) => Ok(()),
        RunEnd::Exit(126 | 127) => Err(CliError::failed(format!("There is no tar in {instance}, which copying needs."))
            .hint("Add it to the app's image, or use: flex exec 'cat FILE' > FILE")),
        RunEnd::Exit(n) => Err(CliError::failed(format!("tar in {instance} ended with status {n}; see above."))),
        RunEnd::Error(why) if why.contains("executable file not found") => finished(instance, &RunEnd::Exit(127)),
        RunEnd::Error(why) => Err(CliError::failed(why.clone())),
    }
}

async fn fetch(cx: &Context, instance: &str, path: &str, to: &Path) -> Result<()> {
    let (dir, name) = split(path)?;
    // As cp does: into a directory that is there, else under the name given.
    let (parent, as_name) = if to.is_dir() {
        (to.to_owned(), OsString::from(&name))
    } else {
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let given = to.file_name().ok_or_else(|| CliError::usage(format!("{} is no place to copy to.", to.display())))?;
        if !parent.is_dir() {
            return Err(CliError::usage(format!("{} is not there.", parent.display())));
        }
        (parent, given.to_owned())
    };
    let socket = tar(cx, instance, &["tar", "-C", &dir, "-cf", "-", "--", &name]).await?;
    let (_keep, mut from_server) = socket.split();
    let (pieces, taken) = mpsc::channel::<bytes_of::Piece>(8);
    let unpacking = tokio::task::spawn_blocking(move || unpack(bytes_of::Reader::new(taken), &name, &parent, &as_name));
    let bar = progress();
    let mut end = RunEnd::Error("The connection to the instance was lost.".into());
    while let Some(Ok(message)) = from_server.next().await {
        match message {
            Message::Binary(data) => match data.split_first() {
                Some((&STDERR, text)) => drop(io::stderr().write_all(text)),
                Some((_, bytes)) => {
                    bar.inc(bytes.len() as u64);
                    // An archive that was refused is read no further.
                    if pieces.send(bytes.to_vec()).await.is_err() {
                        break;
                    }
                }
                None => {}
            },
            Message::Text(text) => {
                end = serde_json::from_str(&text).unwrap_or(end);
                break;
            }
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
    drop(pieces);
    bar.finish_and_clear();
    let unpacked = unpacking.await.map_err(while_doing("unpack"))?;
    // What tar said goes first: an archive that breaks off is its consequence.
    if unpacked.is_ok() || matches!(end, RunEnd::Exit(n) if n != 0) {
        finished(instance, &end)?;
    }
    let files = unpacked?;
    output::say(format!("Copied {files} {} from {instance}", if files == 1 { "file" } else { "files" }));
    Ok(())
}

/// Bytes from an async task to a blocking reader, a few pieces at a time.
mod bytes_of {
    use super::{Read, io, mpsc};

    pub type Piece = Vec<u8>;

    pub struct Reader {
        pieces: mpsc::Receiver<Piece>,
        left: io::Cursor<Piece>,
    }

    impl Reader {
        pub fn new(pieces: mpsc::Receiver<Piece>) -> Self {
            Self { pieces, left: io::Cursor::default() }
        }
    }

    impl Read for Reader {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            loop {
                let n = self.left.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
                match self.pieces.blocking_recv() {
                    Some(piece) => self.left = io::Cursor::new(piece),
                    None => return Ok(0),
                }
            }
        }
    }
}

/// Unpacks what is below `name`, as `as_name` in `parent`; how many files. An entry that would write elsewhere ends it.
fn unpack(from: impl Read, name: &str, parent: &Path, as_name: &std::ffi::OsStr) -> Result<u64> {
    let hostile = |what: &Path, why: &str| {
        CliError::failed(format!("The instance sent an archive that is not safe to unpack: {} {why}.", what.display()))
            .hint("Nothing was written outside of the destination; what came before it was copied.")
    };
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(false);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    let mut files = 0;
    for entry in archive.entries().map_err(while_doing("read the archive"))? {
        let mut entry = entry.map_err(while_doing("read the archive"))?;
        let path = entry.path().map_err(while_doing("read the archive"))?.into_owned();
        let below = below(&path, name).ok_or_else(|| hostile(&path, "leads out of what was asked for"))?;
        let target = if below.as_os_str().is_empty() { parent.join(as_name) } else { parent.join(as_name).join(&below) };
        let kind = entry.header().entry_type();
        match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => files += 1,
            tar::EntryType::Directory => {}
            tar::EntryType::Symlink => {
                let to = entry.link_name().map_err(while_doing("read the archive"))?.unwrap_or_default().into_owned();
                if !stays_below(&below, &to) {
                    output::warn(format!("left out: {} is a link to {}", path.display(), to.display()));
                    continue;
                }
            }
            tar::EntryType::Link => {
                // Its other name is inside as well, or it is no business of ours.
                output::warn(format!("left out: {} is a second name of another file", path.display()));
                continue;
            }
            _ => {
                output::warn(format!("left out: {} is neither file, directory nor link", path.display()));
                continue;
            }
        }
        no_link_on_the_way(parent, as_name, &below).map_err(|_| hostile(&path, "goes through a link"))?;
        if kind == tar::EntryType::Directory {
            fs::create_dir_all(&target).map_err(while_doing(format!("make {}", target.display())))?;
            continue;
        }
        if let Some(dir) = target.parent() {
            fs::create_dir_all(dir).map_err(while_doing(format!("make {}", dir.display())))?;
        }
        // A link in its place must be replaced, not followed.
        if fs::symlink_metadata(&target).is_ok_and(|m| m.file_type().is_symlink()) {
            fs::remove_file(&target).map_err(while_doing(format!("replace {}", target.display())))?;
        }
        entry.unpack(&target).map_err(while_doing(format!("write {}", target.display())))?;
    }
    // What pads the archive's end: its writer waits until somebody has taken it.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(while_doing("read the archive"))?;
    Ok(files)
}

/// The rest of `path` below `name`; none if it is not below it.
fn below(path: &Path, name: &str) -> Option<PathBuf> {
    let mut parts = path.components().filter(|c| *c != Component::CurDir);
    if parts.next()? != Component::Normal(name.as_ref()) {
        return None;
    }
    let rest: Option<PathBuf> = parts.map(|c| if let Component::Normal(part) = c { Some(part) } else { None }).collect();
    rest
}

/// Whether a link at `at` (below the destination) leads to somewhere below the destination too.
fn stays_below(at: &Path, to: &Path) -> bool {
    let mut depth = i32::try_from(at.components().count()).unwrap_or(0) - 1;
    for part in to.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

/// No directory between the destination and the entry may be a link: also one that was there before.
fn no_link_on_the_way(parent: &Path, as_name: &std::ffi::OsStr, below: &Path) -> std::result::Result<(), ()> {
    let mut way = parent.join(as_name);
    let mut parts = below.components().peekable();
    while let Some(part) = parts.next() {
        if fs::symlink_metadata(&way).is_ok_and(|m| m.file_type().is_symlink()) {
            return Err(());
        }
        way.push(part);
        if parts.peek().is_none() {
            break;
        }
    }
    Ok(())
}

async fn give(cx: &Context, from: &Path, instance: &str, path: &str) -> Result<()> {
    fs::symlink_metadata(from).map_err(while_doing(format!("read {}", from.display())))?;
    let own = fs::canonicalize(from).ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    let own = own.ok_or_else(|| CliError::usage(format!("{} names no file or directory to copy.", from.display())))?;
    let path = if path.is_empty() { "." } else { path };
    // As cp does: into a directory that is there, else under the name given.
    let (dir, name) =
        if path.ends_with('/') || is_directory(cx, instance, path).await? { (path.to_owned(), own) } else { split(path)? };
    let socket = tar(cx, instance, &["tar", "-C", &dir, "-o", "-xf", "-"]).await?;
    let (mut to_server, mut from_server) = socket.split();
    let (pieces, mut packed) = mpsc::channel::<Vec<u8>>(8);
    let source = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack(&source, &name, pieces));
    let bar = progress();
    let send = async {
        while let Some(piece) = packed.recv().await {
            bar.inc(piece.len() as u64);
            if to_server.send(Message::Binary(piece.into())).await.is_err() {
                break;
            }
        }
        // A tar that has ended takes no more.
        drop(packed);
        let eof = serde_json::to_string(&RunControl::Eof(true)).unwrap_or_default();
        let _ = to_server.send(Message::Text(eof.into())).await;
        std::future::pending::<()>().await;
    };
    let receive = async {
        while let Some(Ok(message)) = from_server.next().await {
            match message {
                Message::Binary(data) => drop(io::stderr().write_all(data.get(1..).unwrap_or_default())),
                Message::Text(text) => return serde_json::from_str(&text).ok(),
                _ => {}
            }
        }
        None
    };
    let end = tokio::select! {
        end = receive => end,
        () = send => None,
    };
    bar.finish_and_clear();
    finished(instance, &end.unwrap_or_else(|| RunEnd::Error("The connection to the instance was lost.".into())))?;
    let files = packing.await.map_err(while_doing("pack"))??;
    output::say(format!("Copied {files} {} to {instance}", if files == 1 { "file" } else { "files" }));
    Ok(())
}

async fn is_directory(cx: &Context, instance: &str, path: &str) -> Result<bool> {
    let mut socket = tar(cx, instance, &["test", "-d", path]).await?;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message {
            return Ok(matches!(serde_json::from_str(&text), Ok(RunEnd::Exit(0))));
        }
    }
    Err(CliError::failed("The connection to the instance was lost."))
}

/// Writes pieces of an archive until nobody takes them.
struct Pieces {
    to: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.to.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Packs a file or a directory under another name; how many files. Links stay links; owners are left out.
fn pack(from: &Path, name: &str, to: mpsc::Sender<Vec<u8>>) -> Result<u64> {
    let doing = || while_doing(format!("pack {}", from.display()));
    let mut builder = tar::Builder::new(Pieces { to, piece: Vec::new() });
    builder.follow_symlinks(false);
    builder.mode(tar::HeaderMode::Complete);
    let mut files = 0;
    if fs::metadata(from).map_err(doing())?.is_dir() {
        builder.append_dir_all(name, from).map_err(doing())?;
        let mut todo = vec![from.to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).map_err(doing())?.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                    _ => files += 1,
                }
            }
        }
    } else {
        builder.append_file(name, &mut fs::File::open(from).map_err(doing())?).map_err(doing())?;
        files = 1;
    }
    builder.into_inner().and_then(|mut w| w.flush()).map_err(doing())?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            // As a hostile archive is written: the crate's own methods would refuse such names.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
            header.set_size(if link { 0 } else { text.len() as u64 });
            if link {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if link { &b""[..] } else { text.as_bytes() }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_is_written_outside() {
        use tar::EntryType::{Link, Regular, Symlink};
        let world = tempfile::tempdir().unwrap();
        let dest = world.path().join("dest");
        fs::create_dir(&dest).unwrap();
        let outside = world.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let out = outside.to_str().unwrap();
        let hostile: Vec<Vec<(&str, tar::EntryType, &str)>> = vec![
            vec![("../outside/x", Regular, "bad")],
            vec![("/tmp/flex-cp-x", Regular, "bad")],
            vec![("d/../../outside/x", Regular, "bad")],
            vec![("other/x", Regular, "bad")],
            vec![("d/link", Symlink, out), ("d/link/x", Regular, "bad")],
            vec![("d", Symlink, "../outside"), ("d/x", Regular, "bad")],
            vec![("d/in", Symlink, "."), ("d/in/x", Regular, "through a link")],
            vec![("d/hard", Link, "/etc/passwd"), ("d/ok", Regular, "fine")],
        ];
        for entries in &hostile {
            let _ = unpack(&archive(entries)[..], "d", &dest, "d".as_ref());
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{entries:?}");
            assert!(!Path::new("/tmp/flex-cp-x").exists());
            assert!(!dest.join("d/hard").exists());
            let _ = fs::remove_dir_all(dest.join("d"));
        }
        // One that was there before is no way out either.
        std::os::unix::fs::symlink(&outside, dest.join("d")).unwrap();
        assert!(unpack(&archive(&[("d/x", Regular, "bad")])[..], "d", &dest, "d".as_ref()).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn what_was_packed_comes_out_under_the_new_name() {
        use std::os::unix::fs::PermissionsExt;
        let world = tempfile::tempdir().unwrap();
        let from = world.path().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/a"), "hello").unwrap();
        std::os::unix::fs::symlink("sub/a", from.join("link")).unwrap();
        let (to, mut pieces) = mpsc::channel(1000);
        assert_eq!(pack(&from, "given", to).unwrap(), 2);
        let mut bytes = Vec::new();
        while let Ok(piece) = pieces.try_recv() {
            bytes.extend(piece);
        }
        assert_eq!(unpack(&bytes[..], "given", world.path(), "to".as_ref()).unwrap(), 1);
        assert_eq!(fs::read_to_string(world.path().join("to/link")).unwrap(), "hello");
        let bits = unpack(&archive(&[("x", tar::EntryType::Regular, "1")])[..], "x", world.path(), "x".as_ref());
        assert_eq!((bits.unwrap(), fs::metadata(world.path().join("x")).unwrap().permissions().mode() & 0o7000), (1, 0));
    }

    #[test]
    fn which_side_is_remote() {
        assert_eq!(remote("web.1:/app/x"), Some(("web.1", "/app/x")));
        assert_eq!(remote(":/app/x"), Some(("web.1", "/app/x")));
        assert_eq!((remote("./a:b"), remote("plain")), (None, None));
        assert_eq!(split("/app/log/").unwrap(), ("/app".into(), "log".into()));
        assert_eq!((split("x").unwrap().0, split("/x").unwrap().0), (".".into(), "/".into()));
        assert!(split("/").is_err() && split("..").is_err());
    }
}
