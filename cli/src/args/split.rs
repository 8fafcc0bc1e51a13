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
            value_follows = !done && takes_value(&arg);
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

/// Where the first word stands that is no option and no value of one: the command.
pub fn command_at(args: &[String]) -> Option<usize> {
    let mut value_follows = false;
    args.iter().enumerate().skip(1).find_map(|(at, arg)| {
        if value_follows || arg.starts_with('-') {
            value_follows = !value_follows && takes_value(arg);
            return None;
        }
        Some(at)
    })
}

/// Whether it is an option of every command with its value in the next word.
fn takes_value(arg: &str) -> bool {
    matches!(arg, "-a" | "--app" | "-r" | "--remote")
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
