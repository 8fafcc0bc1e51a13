//! `topic:verb` is two words.

/// Splits `topic:verb` (and `topic:verb:more`) into words, so that both spellings reach the same place. Only the first
/// word that is not an option is looked at.
pub fn split_topic(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut out = Vec::new();
    let mut args = args.into_iter();
    out.extend(args.next());
    let mut value_follows = false;
    let mut done = false;
    for arg in args {
        if done || value_follows || arg.starts_with('-') {
            value_follows = !done && matches!(arg.as_str(), "-a" | "--app" | "-r" | "--remote");
            out.push(arg);
            continue;
        }
        done = true;
        match arg.split_once(':') {
            Some((topic, verb)) if !topic.is_empty() && !verb.is_empty() => {
                out.extend(standing_alone(topic, verb).unwrap_or_else(|| vec![topic.to_owned(), verb.to_owned()]));
            }
            _ => out.push(arg),
        }
    }
    out
}

/// Spellings that lead elsewhere.
fn standing_alone(topic: &str, verb: &str) -> Option<Vec<String>> {
    let words: &[&str] = match (topic, verb) {
        ("run", "detached") => &["run", "--detach"],
        ("run", "list") => &["runs"],
        ("ps", "exec") => &["exec"],
        ("ps", "copy") => &["cp"],
        ("ps", "forward") => &["port-forward"],
        ("auth", "token") => &["authorizations", "create"],
        ("apps", "maintenance") => &["maintenance"],
        ("auth", "whoami") => &["whoami"],
        ("auth", "login") => &["login"],
        ("auth", "logout") => &["logout"],
        ("releases", "rollback") => &["rollback"],
        ("releases", "canary") => &["canary", "start"],
        ("releases", "promote") => &["canary", "promote"],
        ("apps", "open") => &["open"],
        ("config", "add") => &["config", "set"],
        ("config", "remove") => &["config", "unset"],
        ("authorizations", "rm") => &["authorizations", "revoke"],
        _ => return None,
    };
    Some(words.iter().map(|w| (*w).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> String {
        split_topic(line.split(' ').map(str::to_owned)).join(" ")
    }

    #[test]
    fn both_spellings_are_one() {
        assert_eq!(split("flex ps:scale web=2"), "flex ps scale web=2");
        assert_eq!(split("flex -a my-app config:set A=b:c"), "flex -a my-app config set A=b:c");
        assert_eq!(split("flex builds:cache:purge"), "flex builds cache:purge");
        assert_eq!(split("flex run:detached rake x:y"), "flex run --detach rake x:y");
        assert_eq!(split("flex run rake db:migrate"), "flex run rake db:migrate");
    }
}
