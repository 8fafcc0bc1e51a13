//! The very versions of a stack's packages: read from the lists that its making leaves, kept as `stack.lock` beside the
//! recipe, and held against what a later making gave. Pure.
//!
//! A mirror of Debian keeps the newest version of a package only, so a lock cannot bring an old one back by itself. It makes
//! apt prefer the versions that it names, and what came out otherwise is refused, difference by difference.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write as _};

/// Package names and their versions.
pub type Versions = BTreeMap<String, String>;

/// The packages of both images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Debian's name of it: `amd64`. Versions may differ between architectures.
    pub architecture: String,
    pub run: Versions,
    /// What the build image has besides.
    pub build: Versions,
}

/// The name of the file beside `stack.toml`.
pub const FILE: &str = "stack.lock";

const HEAD: &str = "# The versions of this stack's packages, written by `flexd stack lock`. `flexd stack build --locked` makes the stack\n\
                    # with these versions, or says which of them cannot be had.\n";

impl Lock {
    /// From the lists of both images: lines of `name version architecture`.
    ///
    /// # Errors
    /// A line that is none.
    pub fn of_lists(run: &str, build: &str) -> Result<Self, String> {
        let mut architecture = String::new();
        let mut read = |text: &str| -> Result<Versions, String> {
            let mut out = Versions::new();
            for line in text.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                let [name, version, arch] = words[..] else { return Err(format!("{line:?} is no line of a package list")) };
                if arch != "all" {
                    architecture = arch.to_owned();
                }
                out.insert(name.to_owned(), version.to_owned());
            }
            Ok(out)
        };
        let (run, mut build) = (read(run)?, read(build)?);
        build.retain(|name, version| run.get(name) != Some(version));
        Ok(Self { architecture, run, build })
    }

    /// Reads `stack.lock`.
    ///
    /// # Errors
    /// What is wrong, with its place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lock: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:~".contains(&b));
        for (name, version) in lock.run.iter().chain(&lock.build) {
            // They go into apt's preferences, where a pattern or a new line would mean something else.
            if !word(name) || !word(version) {
                return Err(format!("{name} = {version:?} is not a package and its version"));
            }
        }
        Ok(lock)
    }

    /// As text, for `stack.lock`.
    ///
    /// # Errors
    /// It cannot be written as TOML.
    pub fn text(&self) -> Result<String, String> {
        Ok(format!("{HEAD}{}", toml::to_string(self).map_err(|e| e.to_string())?))
    }

    /// apt's preferences for these versions: before any other, older ones too.
    pub fn preferences(&self) -> String {
        let mut out = String::new();
        for (name, version) in self.run.iter().chain(&self.build) {
            let _ = write!(out, "Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n");
        }
        out
    }

    /// Whether both images' lists are what this says.
    ///
    /// # Errors
    /// All that is otherwise.
    pub fn held(&self, run: &str, build: &str) -> Result<(), String> {
        let other = self.differences(&Self::of_lists(run, build)?);
        if other.is_empty() { Ok(()) } else { Err(format!("the versions of {FILE} cannot be had:\n  {}", other.join("\n  "))) }
    }

    /// What was made otherwise than this says, a line for each.
    pub fn differences(&self, made: &Self) -> Vec<String> {
        let mut out = Vec::new();
        if self.architecture != made.architecture {
            out.push(format!("the lock is for {}, this machine is {}", self.architecture, made.architecture));
        }
        for (image, locked, made) in [("run", &self.run, &made.run), ("build", &self.build, &made.build)] {
            for (name, version) in locked {
                match made.get(name) {
                    Some(other) if other != version => {
                        out.push(format!("{name} ({image}): {version} is locked, {other} can be had"));
                    }
                    None => out.push(format!("{name} ({image}): {version} is locked, but it was not installed")),
                    Some(_) => {}
                }
            }
            let more = made.keys().filter(|name| !locked.contains_key(*name));
            out.extend(more.map(|name| format!("{name} ({image}): {} was installed, but it is not locked", made[name])));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "bash 5.2.37-2+b5 amd64\nlibstdc++6 14.2.0-19 amd64\ntzdata 2025b-4 all\n";
    const BUILD: &str = "bash 5.2.37-2+b5 amd64\ngit 1:2.47.3-0+deb13u1 amd64\nlibstdc++6 14.2.0-19 amd64\ntzdata 2025b-4 all\n";

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let lock = Lock::of_lists(RUN, BUILD).unwrap();
        assert_eq!((lock.architecture.as_str(), lock.run.len(), lock.build.len()), ("amd64", 3, 1));
        assert_eq!(Lock::parse(&lock.text().unwrap()), Ok(lock.clone()));
        assert!(lock.preferences().contains("Package: git\nPin: version 1:2.47.3-0+deb13u1\nPin-Priority: 1001\n\n"));
        assert!(Lock::of_lists("bash 5\n", "").unwrap_err().contains("bash 5"));
    }

    #[test]
    fn a_lock_is_no_way_into_apts_preferences() {
        for bad in ["\"a b\" = \"1\"", "\"*\" = \"1\"", "a = \"1\\nPin: release a=x\"", "a = \"\"", "a = 1"] {
            let text = format!("architecture = \"amd64\"\n[run]\n{bad}\n[build]\n");
            assert!(Lock::parse(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_difference_is_named() {
        let lock = Lock::of_lists(RUN, BUILD).unwrap();
        assert_eq!((lock.held(RUN, BUILD), lock.differences(&lock)), (Ok(()), Vec::new()));
        let refused = lock.held(RUN, &BUILD.replace("1:2.47.3-0+deb13u1", "1:2.47.4-1")).unwrap_err();
        assert_eq!(
            refused,
            "the versions of stack.lock cannot be had:\n  git (build): 1:2.47.3-0+deb13u1 is locked, 1:2.47.4-1 can be had"
        );
        let run = RUN.replace("14.2.0-19", "14.3.0-1").replace("tzdata 2025b-4 all\n", "");
        let made = Lock::of_lists(&run, &format!("{run}git 1:2.47.3-0+deb13u1 amd64\npatch 2.8-2 amd64\n")).unwrap();
        assert_eq!(
            lock.differences(&made),
            [
                "libstdc++6 (run): 14.2.0-19 is locked, 14.3.0-1 can be had",
                "tzdata (run): 2025b-4 is locked, but it was not installed",
                "patch (build): 2.8-2 was installed, but it is not locked",
            ]
        );
        let other = Lock { architecture: "arm64".into(), ..lock.clone() };
        assert!(lock.differences(&other)[0].contains("arm64"));
    }
}
