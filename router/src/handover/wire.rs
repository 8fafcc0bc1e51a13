//! What is said at the door: lines of JSON in turn, one of them with descriptors. No side says its next word before the other
//! has answered the last, so descriptors always belong to the line that they came with.
//!
//! | the successor | the process before |
//! |---|---|
//! | `{"take":1}`: the form that it understands | `{"sockets":[…],"more":true}` with a descriptor for each, or `{"refused":"why"}` |
//! | `{"next":true}` until nothing more comes | the next of them |
//! | `{"ready":true}`: it accepts | `{"draining":true}` |

use super::SocketName;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

/// What this program speaks.
const VERSION: u32 = 1;
/// Descriptors of one line; the kernel takes 253.
const AT_ONCE: usize = 64;
/// The longest line: far more than [`AT_ONCE`] names take.
const LINE: usize = 16 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    Take(u32),
    Next(bool),
    Ready(bool),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Sockets { sockets: Vec<SocketName>, more: bool },
    Refused { refused: String },
    Draining { draining: bool },
}

fn say(stream: &UnixStream, what: &impl Serialize, fds: &[OwnedFd]) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    (&*stream).write_all(&line[sent..])
}

/// The next line, with what came with it. `None`: the other side has gone.
fn hear<T: for<'a> Deserialize<'a>>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if got.bytes == 0 && line.is_empty() {
            return Ok(None);
        }
        line.extend_from_slice(&bytes[..got.bytes]);
        if got.bytes == 0 || line.len() > LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the other side broke off in the middle of a line"));
        }
    }
    Ok(Some((serde_json::from_slice(&line)?, fds)))
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it says something else than what was to come")
}

/// The successor's side: everything that the process before has.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Vec<(SocketName, OwnedFd)>> {
    let (mut all, mut ask) = (Vec::new(), Ask::Take(VERSION));
    loop {
        say(stream, &ask, &[])?;
        match hear(stream)?.ok_or_else(gone)? {
            (Answer::Sockets { sockets, more }, fds) if sockets.len() == fds.len() => {
                all.extend(sockets.into_iter().zip(fds));
                if !more {
                    return Ok(all);
                }
            }
            (Answer::Refused { refused }, _) => return Err(io::Error::new(io::ErrorKind::Unsupported, refused)),
            _ => return Err(unexpected()),
        }
        ask = Ask::Next(true);
    }
}

/// The other side of [`receive`].
pub(super) fn give(stream: &UnixStream, all: impl FnOnce() -> io::Result<Vec<(SocketName, OwnedFd)>>) -> io::Result<()> {
    match hear(stream)?.ok_or_else(gone)?.0 {
        Ask::Take(VERSION) => {}
        Ask::Take(other) => {
            let refused = format!("this is version {VERSION}, not {other}");
            return say(stream, &Answer::Refused { refused }, &[]);
        }
        _ => return Err(unexpected()),
    }
    let (mut names, mut fds): (Vec<_>, Vec<_>) = all()?.into_iter().unzip();
    loop {
        let at = names.len().saturating_sub(AT_ONCE);
        let answer = Answer::Sockets { sockets: names.split_off(at), more: at > 0 };
        say(stream, &answer, &fds.split_off(at))?;
        if at == 0 {
            return Ok(());
        }
        if hear::<Ask>(stream)?.ok_or_else(gone)?.0 != Ask::Next(true) {
            return Err(unexpected());
        }
    }
}

/// The successor's last word.
pub(super) fn ready(stream: &UnixStream) -> io::Result<()> {
    say(stream, &Ask::Ready(true), &[])?;
    // Byte by byte: behind this line comes what is not this function's.
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != [b'\n'] && line.len() < LINE {
        (&*stream).read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    match serde_json::from_slice(&line)? {
        Answer::Draining { .. } => Ok(()),
        _ => Err(unexpected()),
    }
}

/// Waits for that word; false: the successor has gone without it.
pub(super) fn is_ready(stream: &UnixStream) -> io::Result<bool> {
    match hear(stream)? {
        Some((Ask::Ready(true), _)) => Ok(true),
        None => Ok(false),
        _ => Err(unexpected()),
    }
}

/// Answers it.
pub(super) fn draining(stream: &UnixStream) -> io::Result<()> {
    say(stream, &Answer::Draining { draining: true }, &[])
}
