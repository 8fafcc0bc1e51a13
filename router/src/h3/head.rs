//! The field sections of a request, checked as RFC 9114 section 4 asks, and those of an answer. What is not allowed there is
//! refused whole; nothing is mended.

use super::qpack;
use crate::h1::carry::is_hop;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, header,
    uri::{Authority, PathAndQuery},
};

/// A request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) authority: Option<String>,
    pub(super) path: String,
    pub(super) protocol: Option<String>,
    pub(super) headers: HeaderMap,
}

impl Head {
    /// `None`: the request is malformed (RFC 9114 section 4.1.2).
    pub(super) fn new(fields: Vec<(Bytes, Bytes)>) -> Option<Self> {
        let (mut method, mut scheme, mut authority, mut path, mut protocol) = (None, None, None, None, None);
        let mut headers = HeaderMap::with_capacity(fields.len());
        for (name, value) in fields {
            let pseudo = match &name[..] {
                b":method" => &mut method,
                b":scheme" => &mut scheme,
                b":authority" => &mut authority,
                b":path" => &mut path,
                b":protocol" => &mut protocol,
                _ => {
                    append(&mut headers, &name, value)?;
                    continue;
                }
            };
            // Pseudo-header fields come first, each of them once, and are not empty.
            if !headers.is_empty() || value.is_empty() || pseudo.replace(value).is_some() {
                return None;
            }
        }
        let text = |value: Bytes| std::str::from_utf8(&value).ok().map(str::to_owned);
        let method = Method::from_bytes(&method?).ok()?;
        let authority = match authority {
            Some(value) => Some(text(value).filter(|a| Authority::try_from(a.as_str()).is_ok())?),
            None => None,
        };
        let protocol = match protocol {
            Some(value) => Some(text(value)?),
            None => None,
        };
        if method == Method::CONNECT && protocol.is_none() {
            let none = scheme.is_none() && path.is_none();
            return (none && authority.is_some()).then(|| Self { method, authority, path: String::new(), protocol, headers });
        }
        if protocol.is_some() && method != Method::CONNECT {
            return None;
        }
        // Whoever comes here came by TLS, so there is one scheme.
        if scheme? != "https" {
            return None;
        }
        let path = text(path?)?;
        let sound = path.starts_with('/') || path == "*" && method == Method::OPTIONS;
        if !sound || path.contains('#') || PathAndQuery::try_from(path.as_str()).is_err() {
            return None;
        }
        Some(Self { method, authority, path, protocol, headers })
    }

    /// The length that the content is said to have.
    pub(super) fn length(&self) -> Option<u64> {
        let mut all = self.headers.get_all(header::CONTENT_LENGTH).iter();
        let first = all.next().and_then(|v| crate::h1::request::content_length(v.as_bytes()))?;
        // More than one is refused by the engine.
        all.next().is_none().then_some(first)
    }
}

/// A request's trailers. `None`: they are malformed.
pub(super) fn trailers(fields: Vec<(Bytes, Bytes)>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        append(&mut headers, &name, value)?;
    }
    Some(headers)
}

fn append(headers: &mut HeaderMap, name: &[u8], value: Bytes) -> Option<()> {
    // This refuses capitals, and pseudo-header fields that there are none of.
    let name = HeaderName::from_lowercase(name).ok()?;
    let value = HeaderValue::from_maybe_shared(value).ok()?;
    if is_hop(&name) || name == header::TE && value != "trailers" {
        return None;
    }
    headers.try_append(name, value).ok()?;
    Some(())
}

/// A field section. `status`: an answer's; trailers have none.
pub(super) fn section(status: Option<http::StatusCode>, headers: &HeaderMap) -> Vec<u8> {
    let mut block = Vec::with_capacity(256);
    qpack::begin(&mut block);
    if let Some(status) = status {
        qpack::encode(b":status", status.as_str().as_bytes(), &mut block);
    }
    for (name, value) in headers {
        qpack::encode(name.as_str().as_bytes(), value.as_bytes(), &mut block);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &'static str)]) -> Option<Head> {
        Head::new(fields.iter().map(|(n, v)| (Bytes::from_static(n.as_bytes()), Bytes::from_static(v.as_bytes()))).collect())
    }

    const USUAL: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/x?y")];

    fn with(more: &[(&'static str, &'static str)]) -> Option<Head> {
        head(&[&USUAL, more].concat())
    }

    fn instead(at: usize, field: (&'static str, &'static str)) -> Option<Head> {
        let mut fields = USUAL;
        fields[at] = field;
        head(&fields)
    }

    #[test]
    fn what_the_standard_calls_malformed_is_refused() {
        let sound = with(&[("x-a", "1"), ("te", "trailers"), ("content-length", "5")]).unwrap();
        assert_eq!((sound.path.as_str(), sound.authority.as_deref(), sound.length()), ("/x?y", Some("a.test"), Some(5)));
        for field in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("X-A", "1"),
            ("x a", "1"),
            ("x-a\r\nx-b", "1"),
            ("", "1"),
            ("x-a", "1\r\nx-b: 2"),
            ("x-a", "1\n"),
            ("x-a", "\0"),
            (":status", "200"),
            (":other", "x"),
            // Twice.
            (":method", "GET"),
            (":path", "/z"),
            (":authority", "b.test"),
            (":scheme", "https"),
            // Of an extended CONNECT only.
            (":protocol", "websocket"),
        ] {
            assert!(with(&[field]).is_none(), "{field:?}");
        }
        // Behind other fields.
        assert!(head(&[USUAL[0], USUAL[1], USUAL[2], ("x-a", "1"), USUAL[3]]).is_none());
        for at in [0, 1, 3] {
            let fields: Vec<_> = USUAL.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, f)| *f).collect();
            assert!(head(&fields).is_none(), "{at}");
            assert!(instead(at, (USUAL[at].0, "")).is_none(), "{at}");
        }
        for path in ["x", "*", "/a b", "/a#b", "/a\r\nb", "https://b.test/"] {
            assert!(instead(3, (":path", path)).is_none(), "{path}");
        }
        for authority in ["", "a.test\r\nx: y", "a.test b", "a.test/x", "a\0"] {
            assert!(instead(2, (":authority", authority)).is_none(), "{authority}");
            assert!(head(&[(":method", "CONNECT"), (":authority", authority)]).is_none(), "{authority}");
        }
        assert!(instead(1, (":scheme", "http")).is_none());
        assert!(instead(0, (":method", "G T")).is_none());
        let mut options = USUAL;
        (options[0], options[3]) = ((":method", "OPTIONS"), (":path", "*"));
        assert!(head(&options).is_some());
    }

    #[test]
    fn connect_has_an_authority_alone_unless_it_is_extended() {
        assert!(head(&[(":method", "CONNECT"), (":authority", "a.test:80")]).is_some());
        assert!(head(&[(":method", "CONNECT"), (":authority", "a.test:80"), (":path", "/")]).is_none());
        assert!(head(&[(":method", "CONNECT")]).is_none());
        assert!(instead(0, (":method", "CONNECT")).is_none());
        let mut fields = USUAL.to_vec();
        fields[0] = (":method", "CONNECT");
        fields.push((":protocol", "websocket"));
        assert_eq!(head(&fields).unwrap().protocol.as_deref(), Some("websocket"));
    }

    #[test]
    fn trailers_have_no_pseudo_header_fields() {
        let fields = |name: &'static str| vec![(Bytes::from_static(name.as_bytes()), Bytes::from_static(b"1"))];
        assert!(trailers(fields("grpc-status")).is_some());
        assert!(trailers(fields(":path")).is_none() && trailers(fields("connection")).is_none());
    }
}
