//! Names that people type and programs carry about. Each has one grammar, checked here and nowhere else; everything
//! behind the border may trust it, which is what keeps names out of shells, paths and host names' way. A copy of a name is
//! the same text in memory.

use crate::Invalid;
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

macro_rules! names {
    (@refused $what:literal $given:ident $rule:ident) => { Invalid::new($what, $given, $rule) };
    (@refused $what:literal $given:ident $rule:ident unsaid) => { Invalid::unsaid($what, $rule) };
    ($($(#[$doc:meta])* $name:ident: $what:literal, $check:path $(, $unsaid:ident)?;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{:?}", self.0) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(&self.0) }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str { &self.0 }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str { &self.0 }
        }
        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(s: &str) -> Result<Self, Invalid> {
                $check(s).map(|s| Self(s.into())).map_err(|rule| names!(@refused $what s rule $($unsaid)?))
            }
        }
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(s: String) -> Result<Self, Invalid> { s.parse() }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// An app's name: `[a-z][a-z0-9-]{1,29}`, not ending in `-`: a DNS label with room for a prefix.
    AppName: "app name", check_app;
    /// A process type, the left side of a Procfile line: `[A-Za-z0-9_-]{1,63}`.
    ProcessType: "process type", check_process;
    /// A config var's name: `[A-Za-z_][A-Za-z0-9_]{0,255}`, as POSIX environments allow. What is refused is not said: a
    /// value that lost its quotes or its line ends up in a name's place.
    ConfigKey: "config var name", check_config_key, unsaid;
    /// A host name to route, lower case, at most 253 octets, optionally `*.` first (RFC 1123 labels).
    DomainName: "domain", check_domain;
    /// Something that looks enough like an e-mail address to name a user by.
    Email: "e-mail address", check_email;
    /// A stack: the pair of images that apps are built and run on, e.g. `flex-13`.
    StackName: "stack", check_app;
    /// A git object name: 40 (SHA-1) or 64 (SHA-256) lower-case hex digits.
    CommitId: "commit", check_commit;
}

impl ProcessType {
    /// The process type that gets `PORT` and the app's routes.
    pub const WEB: &'static str = "web";
    /// `web`.
    pub fn web() -> Self {
        static NAME: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(ProcessType::WEB));
        Self(NAME.clone())
    }
    /// Whether requests are routed to it.
    pub fn is_web(&self) -> bool {
        &*self.0 == Self::WEB
    }
    /// The Procfile entry that runs once per release and is never scaled.
    pub fn is_release_phase(&self) -> bool {
        &*self.0 == "release"
    }
}

impl DomainName {
    /// The name as text that needs no copy to be kept: 100,000 of them are in every router's table.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// Whether requests at `name` come here where nothing more special takes them: it is this name, or this is a wildcard
    /// above it.
    pub fn covers(&self, name: &Self) -> bool {
        let below = self.0.strip_prefix('*').is_some_and(|suffix| name.0.strip_prefix("*.").unwrap_or(&name.0).ends_with(suffix));
        below || self == name
    }

    /// The wildcards that cover it, the most special first.
    pub fn wildcards(&self) -> impl Iterator<Item = Self> {
        let bare = self.0.strip_prefix("*.").unwrap_or(&self.0);
        bare.match_indices('.').map(|(at, _)| Self(format!("*{}", &bare[at..]).into()))
    }

    /// How many labels there are, the `*` of a wildcard not among them.
    pub fn labels(&self) -> usize {
        self.0.split('.').filter(|l| *l != "*").count()
    }
}

impl CommitId {
    /// The first seven digits, as people quote commits.
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}

fn check_app(s: &str) -> Result<String, String> {
    let ok = (2..=30).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && s.starts_with(|c: char| c.is_ascii_lowercase())
        && !s.ends_with('-');
    ok.then(|| s.to_owned()).ok_or_else(|| {
        "use 2 to 30 lower-case letters, digits and dashes, starting with a letter and not ending with a dash".into()
    })
}

fn check_process(s: &str) -> Result<String, String> {
    let ok = (1..=63).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !s.starts_with('-');
    ok.then(|| s.to_owned()).ok_or_else(|| "use 1 to 63 letters, digits, dashes and underscores".into())
}

fn check_config_key(s: &str) -> Result<String, String> {
    let ok = (1..=256).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !s.starts_with(|c: char| c.is_ascii_digit());
    ok.then(|| s.to_owned()).ok_or_else(|| "use letters, digits and underscores, not starting with a digit".into())
}

fn check_domain(s: &str) -> Result<String, String> {
    let s = s.strip_suffix('.').unwrap_or(s).to_ascii_lowercase();
    let bare = s.strip_prefix("*.").unwrap_or(&s);
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let ok = s.len() <= 253
        && !bare.is_empty()
        && bare.split('.').all(label)
        && !bare.rsplit('.').next().is_some_and(|tld| tld.bytes().all(|b| b.is_ascii_digit()));
    ok.then_some(s).ok_or_else(|| "use a host name such as www.example.com or *.example.com, without scheme, port or path".into())
}

fn check_email(s: &str) -> Result<String, String> {
    let ok = s.len() <= 254
        && s.split_once('@').is_some_and(|(l, d)| !l.is_empty() && !d.is_empty() && !d.contains('@'))
        && !s.chars().any(|c| c.is_whitespace() || c.is_control());
    ok.then(|| s.to_ascii_lowercase()).ok_or_else(|| "use the form name@domain".into())
}

fn check_commit(s: &str) -> Result<String, String> {
    let ok = matches!(s.len(), 40 | 64) && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    ok.then(|| s.to_owned()).ok_or_else(|| "use a full commit id of 40 or 64 hex digits".into())
}

/// A git branch's short name (`main`, `feature/x`): a subset of `git check-ref-format` that no tool reads as an option.
pub fn check_branch(s: &str) -> Result<(), Invalid> {
    let ok = (1..=200).contains(&s.len())
        && !s.starts_with(['-', '/', '.'])
        && !s.ends_with(['/', '.'])
        && !s.ends_with(".lock")
        && !s.contains("..")
        && !s.contains("//")
        && !s.contains("@{")
        && s.chars().all(|c| c > ' ' && c != '\x7f' && !"~^:?*[\\".contains(c));
    ok.then_some(()).ok_or_else(|| Invalid::new("branch", s, "git's check-ref-format refuses it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_names() {
        for ok in ["ab", "my-app", "a1", "a234567890123456789012345678-9"] {
            assert_eq!(ok.parse::<AppName>().unwrap().as_str(), ok);
        }
        for bad in ["", "a", "-a", "a-", "A1", "1a", "a_b", "a.b", "$(id)", "a b", "ä1", "a2345678901234567890123456789012"] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn domains_fold_case_and_refuse_addresses() {
        assert_eq!("WWW.Example.COM.".parse::<DomainName>().unwrap().as_str(), "www.example.com");
        assert!("*.example.com".parse::<DomainName>().is_ok());
        for bad in ["", "*.", "1.2.3.4", "a..b", "-a.b", "http://a.b", "a.b:80", "a.*.b", "a b.c"] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards_cover_what_is_below_them() {
        let name = |s: &str| s.parse::<DomainName>().unwrap();
        let covers = |a: &str, b: &str| name(a).covers(&name(b));
        assert!(
            covers("*.shop.test", "www.shop.test") && covers("*.shop.test", "a.b.shop.test") && covers("*.test", "*.shop.test")
        );
        assert!(covers("*.example.com", "apps.example.com"));
        assert!(covers("*.shop.test", "*.shop.test") && covers("a.test", "a.test"));
        assert!(!covers("*.shop.test", "shop.test") && !covers("*.shop.test", "*.test") && !covers("*.shop.test", "myshop.test"));
        let above: Vec<_> = name("a.b.test").wildcards().map(|n| n.to_string()).collect();
        assert_eq!(above, ["*.b.test", "*.test"]);
        assert_eq!(name("*.b.test").wildcards().next(), Some(name("*.test")));
        assert_eq!((name("*.com").labels(), name("a.b.c").labels()), (1, 3));
    }

    #[test]
    fn serde_goes_through_the_grammar() {
        assert!(serde_json::from_str::<AppName>("\"../etc\"").is_err());
        assert!(serde_json::from_str::<ConfigKey>("\"A\\u0000B\"").is_err());
    }

    #[test]
    fn what_is_no_name_of_a_config_var_may_be_a_secret() {
        let told = "hunter2==".parse::<ConfigKey>().unwrap_err().to_string();
        assert_eq!(told, "config var name is not valid: use letters, digits and underscores, not starting with a digit");
        assert!("Bad".parse::<AppName>().unwrap_err().to_string().starts_with("app name \"Bad\" is not valid: "));
    }

    #[test]
    fn branches() {
        for ok in ["main", "feature/x", "v1.2"] {
            check_branch(ok).unwrap();
        }
        for bad in ["-main", "a..b", "a b", "a:b", "x.lock", "/x", "a\nb"] {
            assert!(check_branch(bad).is_err(), "{bad}");
        }
    }
}
