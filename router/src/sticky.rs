//! Keeps a client with one instance by a signed cookie. The cookie names an instance; the signature is what keeps a
//! client from choosing one, and from trying out which exist.

use flex_model::{AppId, InstanceId, Secret, Uuid};
use sha2::{Digest as _, Sha256};

/// The cookie's name.
pub(crate) const NAME: &str = "flex_instance";
/// 128 bits of the signature: enough that guessing is hopeless.
const SIGNATURE: usize = 16;

fn signature(key: &Secret, app: AppId, instance: InstanceId) -> [u8; SIGNATURE] {
    // Hashed twice with the key, as HMAC does: what was signed cannot be extended.
    let keyed = |part: &[u8]| Sha256::new().chain_update(key.expose()).chain_update(part).finalize();
    let message = [app.0.as_bytes().as_slice(), instance.0.as_bytes()].concat();
    let whole = keyed(&keyed(&message));
    std::array::from_fn(|i| whole[i])
}

/// The value of `Set-Cookie`. For the session; out of reach of scripts.
pub(crate) fn cookie(key: &Secret, app: AppId, instance: InstanceId, secure: bool) -> String {
    let signature = u128::from_be_bytes(signature(key, app, instance));
    let secure = if secure { "; Secure" } else { "" };
    format!("{NAME}={:032x}{signature:032x}; Path=/; HttpOnly; SameSite=Lax{secure}", instance.0.as_u128())
}

/// The instance that a request's head (as it goes to instances) asks for, if its cookie is one of ours.
pub(crate) fn wanted(key: &Secret, app: AppId, head: &[u8]) -> Option<InstanceId> {
    let fields = head.split(|b| *b == b'\n').skip(1).filter_map(|line| {
        let at = memchr::memchr(b':', line)?;
        line[..at].eq_ignore_ascii_case(b"cookie").then(|| &line[at + 1..])
    });
    let pairs = fields.flat_map(|f| f.split(|b| *b == b';')).map(<[u8]>::trim_ascii);
    let values = pairs.filter_map(|p| p.strip_prefix(NAME.as_bytes())?.strip_prefix(b"="));
    values.take(4).find_map(|value| verify(key, app, value))
}

fn verify(key: &Secret, app: AppId, value: &[u8]) -> Option<InstanceId> {
    let text = std::str::from_utf8(value).ok().filter(|t| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let instance = InstanceId(Uuid::from_u128(u128::from_str_radix(&text[..32], 16).ok()?));
    let given = u128::from_str_radix(&text[32..], 16).ok()?.to_be_bytes();
    // Without an early end: the time it takes tells nothing about the right signature.
    let differ = signature(key, app, instance).iter().zip(given).fold(0, |d, (a, b)| d | (a ^ b));
    (differ == 0).then_some(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_signed_for_this_app_counts() {
        let (key, other) = (Secret::new("k"), Secret::new("l"));
        let (app, instance) = (AppId(Uuid::from_u128(1)), InstanceId(Uuid::from_u128(7)));
        let set = cookie(&key, app, instance, true);
        assert!(set.ends_with("; Secure") && set.contains("HttpOnly"));
        let pair = set.split(';').next().unwrap();
        let head = |cookie: &str| format!("GET / HTTP/1.1\r\nHost: a\r\ncookie: a=b; {cookie} ; c=d\r\n\r\n").into_bytes();
        assert_eq!(wanted(&key, app, &head(pair)), Some(instance));
        assert_eq!(wanted(&other, app, &head(pair)), None);
        assert_eq!(wanted(&key, AppId(Uuid::from_u128(2)), &head(pair)), None);
        let forged = pair.replacen('7', "8", 1);
        for bad in [forged.as_str(), "flex_instance=", "flex_instance=zz", "xflex_instance=1", ""] {
            assert_eq!(wanted(&key, app, &head(bad)), None, "{bad}");
        }
        // Not in the request's first line.
        assert_eq!(wanted(&key, app, format!("GET /cookie:{pair} HTTP/1.1\r\n\r\n").as_bytes()), None);
    }
}
