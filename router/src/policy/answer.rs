//! What a policy changes about answers: fields, compression, pages.

use super::{Check, Gate, compress, head::Head, pages};
use crate::{
    Code,
    codes::reason,
    h1::{
        request::{Framing, Request, write_field},
        response::Response,
    },
    shared::Place,
};

/// What the answer to one request is to say besides.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// The client came by HTTPS.
    pub(super) https: bool,
    pub(super) fields: Vec<(&'static str, String)>,
    /// A password that nobody has looked at yet.
    pub(crate) check: Option<Check>,
}

impl Extra {
    pub(super) fn add(&mut self, name: &'static str, value: &str) {
        self.fields.push((name, value.to_owned()));
    }
}

impl Gate {
    /// Changes an instance's answer, whose head is not complete yet. Some: its content is to be compressed with this, and its
    /// length is not known any more. `room`: for the memory that it takes.
    pub(crate) fn shape<'a>(
        &self,
        request: &Request,
        response: &mut Response,
        extra: &Extra,
        room: impl FnOnce() -> Option<Place<'a>>,
    ) -> Option<(compress::Encoder, Place<'a>)> {
        let encoder = self.encode(request, response, room);
        self.write_fields(&mut response.head, extra);
        encoder
    }

    /// The code's page, ready to send: the app's own, where it has one.
    pub(crate) fn refusal(&self, code: Code, request: &Request, close: bool, extra: &Extra) -> Vec<u8> {
        let page = code.page();
        let own = pages::find(&self.pages, code, request.prefer);
        let mut whole = match own {
            None => page.render(request.prefer, &request.request_id, false, close),
            Some(html) => own_page(page.status, html, &request.request_id, close),
        };
        let at = whole.windows(4).position(|w| w == b"\r\n\r\n").map_or(whole.len(), |at| at + 2);
        let body = whole.split_off(at);
        self.write_fields(&mut whole, extra);
        whole.extend_from_slice(if request.head_only { &body[..2.min(body.len())] } else { &body });
        whole
    }

    pub(crate) fn redirect(&self, status: u16, location: &str, request: &Request, close: bool, extra: &Extra) -> Vec<u8> {
        let body = format!("{}: {location}\n", reason(status));
        let mut out = format!("HTTP/1.1 {status} {}\r\nLocation: {location}\r\n", reason(status)).into_bytes();
        write_field("Content-Type", b"text/plain; charset=utf-8", &mut out);
        write_field("Content-Length", body.len().to_string().as_bytes(), &mut out);
        write_field("X-Request-ID", request.request_id.as_bytes(), &mut out);
        if close {
            write_field("Connection", b"close", &mut out);
        }
        self.write_fields(&mut out, extra);
        out.extend_from_slice(b"\r\n");
        if !request.head_only {
            out.extend_from_slice(body.as_bytes());
        }
        out
    }

    /// Fields that are set, removed, or told by a limit. `head` lacks its blank line.
    fn write_fields(&self, head: &mut Vec<u8>, extra: &Extra) {
        let hsts = self.hsts.as_deref().filter(|_| extra.https);
        if !self.http.headers.is_empty() || hsts.is_some() || !extra.fields.is_empty() {
            let ours = |name: &str| extra.fields.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
            retain(head, |name| {
                // The policy's own word counts, not the app's beside it.
                let is_hsts = hsts.is_some() && name == "strict-transport-security";
                !is_hsts && !ours(name) && !self.http.headers.keys().any(|h| h.as_str() == name)
            });
        }
        for (name, value) in &self.http.headers {
            if let Some(value) = value.on() {
                write_field(&cased(name.as_str()), value.as_bytes(), head);
            }
        }
        if let Some(value) = hsts
            && !self.http.headers.keys().any(|h| h.as_str() == "strict-transport-security")
        {
            write_field("Strict-Transport-Security", value.as_bytes(), head);
        }
        for (name, value) in &extra.fields {
            write_field(name, value.as_bytes(), head);
        }
    }

    fn encode<'a>(
        &self,
        request: &Request,
        response: &mut Response,
        room: impl FnOnce() -> Option<Place<'a>>,
    ) -> Option<(compress::Encoder, Place<'a>)> {
        let offered = self.compress();
        if offered.is_empty() || response.status < 200 || response.status == 204 {
            return None;
        }
        // What a cache has of it already, or a part of it: not to be compressed, but it belongs to what would be.
        let of_another = matches!(response.status, 206 | 304);
        let head = Head::of(&response.head);
        let has = |name| head.field(name).is_some();
        let kept = head.items("cache-control").any(|c| c.eq_ignore_ascii_case("no-transform"));
        let shrinks = head.field("content-type").map_or(response.status == 304, compress::shrinks);
        if !shrinks || has("content-encoding") || has("content-range") && !of_another || kept {
            return None;
        }
        // Caches must know that there is more than one form, whichever this client gets.
        let vary = head.items("vary").any(|v| v == "*" || v.eq_ignore_ascii_case("accept-encoding"));
        let length = head.field("content-length").and_then(|n| n.parse::<u64>().ok());
        let small = !of_another && length.is_some_and(|n| n < compress::WORTH);
        let coding = compress::choose(offered, Head::of(&request.upstream).items("accept-encoding"));
        let coding = coding.filter(|_| !small && !request.http10);
        // An answer without content says what its content would be like, and that is not known before it is compressed.
        let bare = of_another || response.framing == Framing::None;
        let chosen = coding.filter(|_| !bare).and_then(|c| Some((c, room()?))).and_then(|(coding, room)| {
            let encoder = compress::Encoder::new(coding)?;
            Some((coding, (encoder, room)))
        });
        let out = &mut response.head;
        if !vary {
            write_field("Vary", b"Accept-Encoding", out);
        }
        if coding.is_some() && (bare || chosen.is_some()) {
            weaken_etag(out);
        }
        let (coding, encoder) = chosen?;
        retain(out, |name| !matches!(name, "content-length" | "accept-ranges" | "content-md5" | "digest"));
        write_field("Content-Encoding", coding.name().as_bytes(), out);
        Some(encoder)
    }
}

/// An app's own page with the fields that the platform's pages have.
fn own_page(status: u16, html: &str, request_id: &str, close: bool) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} {}\r\n", reason(status)).into_bytes();
    write_field("Content-Type", b"text/html; charset=utf-8", &mut out);
    write_field("Content-Length", html.len().to_string().as_bytes(), &mut out);
    write_field("Cache-Control", b"no-cache, no-store", &mut out);
    write_field("X-Request-ID", request_id.as_bytes(), &mut out);
    if status == 503 {
        write_field("Retry-After", b"5", &mut out);
    }
    if close {
        write_field("Connection", b"close", &mut out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(html.as_bytes());
    out
}

/// Keeps the first line and the fields that `keep` says yes to (names in lower case). `head` lacks its blank line.
fn retain(head: &mut Vec<u8>, keep: impl Fn(&str) -> bool) {
    let mut out = Vec::with_capacity(head.len());
    for (n, line) in head.split_inclusive(|b| *b == b'\n').enumerate() {
        let name = memchr::memchr(b':', line).map_or(&[][..], |at| &line[..at]);
        if n == 0 || keep(&String::from_utf8_lossy(name).to_ascii_lowercase()) {
            out.extend_from_slice(line);
        }
    }
    *head = out;
}

/// RFC 9110 section 8.8.3.3: another coding is another representation, equal only in meaning.
fn weaken_etag(head: &mut Vec<u8>) {
    let mut out = Vec::with_capacity(head.len() + 2);
    for line in head.split_inclusive(|b| *b == b'\n') {
        match line.get(..5) {
            Some(name) if name.eq_ignore_ascii_case(b"etag:") && line[5..].trim_ascii_start().starts_with(b"\"") => {
                out.extend_from_slice(b"ETag: W/");
                out.extend_from_slice(line[5..].trim_ascii_start());
            }
            _ => out.extend_from_slice(line),
        }
    }
    *head = out;
}

/// `x-frame-options` as people write it: HTTP/1 does not care, people who look do.
fn cased(name: &str) -> String {
    let word = |w: &str| w.chars().enumerate().map(|(n, c)| if n == 0 { c.to_ascii_uppercase() } else { c }).collect::<String>();
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_edited_in_place() {
        let mut head = b"HTTP/1.1 200 OK\r\nETag:  \"a\"\r\nx-a: 1\r\nX-B: 2\r\n".to_vec();
        retain(&mut head, |name| name != "x-a");
        weaken_etag(&mut head);
        assert_eq!(head, b"HTTP/1.1 200 OK\r\nETag: W/\"a\"\r\nX-B: 2\r\n");
        assert_eq!(cased("x-frame-options"), "X-Frame-Options");
    }
}
