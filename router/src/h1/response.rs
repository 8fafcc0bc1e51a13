//! An instance's answer: checked, and its head written anew for the client. What cannot be read at all is H17, what could be
//! read in two ways or is too much is H25, a switch of protocols that is none is H23.

use super::request::{Framing, Request, content_length, list, write_field};
use crate::Code;
use std::mem::MaybeUninit;

/// What an answer's head says.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The instance lets its connection be used again.
    pub(crate) keep_alive: bool,
    /// The version that the instance speaks, for `Via`.
    pub(crate) via: &'static [u8],
    /// Without the fields that end here, and without the blank line: [`finish`] completes it.
    pub(crate) head: Vec<u8>,
}

impl Response {
    /// Whether the instance's head has a field of this name (lower case).
    pub(crate) fn names(&self, name: &str) -> bool {
        let mut lines = self.head.split(|b| *b == b'\n').skip(1);
        lines.any(|l| {
            l.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes())) && l.get(name.len()) == Some(&b':')
        })
    }
}

/// Reads a head that the scanner found complete. Err: why it is not an answer that can be passed on.
pub(crate) fn parse(head: &[u8], max_headers: usize, request: &Request) -> Result<Response, Code> {
    const MALFORMED: Code = Code::PoorlyFormattedResponse;
    let mut fields = [const { MaybeUninit::uninit() }; 256];
    let mut raw = httparse::Response::new(&mut []);
    let max = max_headers.min(fields.len());
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut raw, head, &mut fields[..max]) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Code::HttpRestriction),
        _ => return Err(MALFORMED),
    }
    let (Some(status @ 100..), Some(version)) = (raw.code, raw.version) else { return Err(MALFORMED) };
    let mut length = None;
    let (mut chunked, mut close, mut keep_alive, mut upgrades) = (false, false, false, false);
    let mut nominated: Vec<&[u8]> = Vec::new();
    for field in &*raw.headers {
        if is(field, "content-length") {
            let n = content_length(field.value).ok_or(Code::HttpRestriction)?;
            if length.replace(n).is_some_and(|before| before != n) {
                return Err(Code::HttpRestriction);
            }
        } else if is(field, "transfer-encoding") {
            if chunked || version == 0 || !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(MALFORMED);
            }
            chunked = true;
        } else if is(field, "connection") {
            for token in list(field.value) {
                close |= token.eq_ignore_ascii_case(b"close");
                keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                upgrades |= token.eq_ignore_ascii_case(b"upgrade");
                nominated.push(token);
            }
        }
    }
    if chunked && length.is_some() {
        return Err(Code::HttpRestriction);
    }
    if status == 101 && !(request.upgrade && upgrades) {
        return Err(Code::EndpointMisconfigured);
    }
    let bodyless = request.head_only || status < 200 || status == 204 || status == 304;
    let framing = match (bodyless, chunked, length) {
        (true, ..) => Framing::None,
        (false, true, _) => Framing::Chunked,
        (false, false, Some(n)) => Framing::Length(n),
        (false, false, None) => Framing::Close,
    };

    let mut out = Vec::with_capacity(head.len() + 64);
    // The reason as the instance gave it, but our own version: it is our connection that the client sees.
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(raw.reason.unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    for field in &*raw.headers {
        let keep = if is(field, "content-length") {
            // One, and only where it says something true.
            false
        } else if is(field, "upgrade") {
            status == 101
        } else {
            !HOP.iter().any(|name| is(field, name))
                && (nominated.is_empty() || !nominated.iter().any(|n| n.eq_ignore_ascii_case(field.name.as_bytes())))
        };
        if keep {
            write_field(field.name, field.value, &mut out);
        }
    }
    if let Some(n) = length
        && !(status < 200 || status == 204)
    {
        write_field("Content-Length", n.to_string().as_bytes(), &mut out);
    }
    let via: &[u8] = if version == 0 { b"1.0 flex-router" } else { b"1.1 flex-router" };
    let reusable = if version == 0 { keep_alive && !close } else { !close };
    Ok(Response { status, framing, keep_alive: reusable && framing != Framing::Close && status != 101, via, head: out })
}

/// Fields for one hop only.
const HOP: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "proxy"];

fn is(field: &httparse::Header<'_>, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Completes the head for this client. `chunked`: the content is framed so. `close`: the connection ends after it.
pub(crate) fn finish(response: &mut Response, request: &Request, chunked: bool, close: bool) {
    let out = &mut response.head;
    write_field("Via", response.via, out);
    if chunked {
        write_field("Transfer-Encoding", b"chunked", out);
    }
    if response.status == 101 {
        write_field("Connection", b"Upgrade", out);
    } else if close {
        write_field("Connection", b"close", out);
    } else if request.http10 {
        write_field("Connection", b"keep-alive", out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Completes an interim head (1xx).
pub(crate) fn finish_interim(response: &mut Response) {
    response.head.extend_from_slice(b"\r\n");
}
