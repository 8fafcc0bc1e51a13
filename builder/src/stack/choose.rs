//! Which stack a build is on: what the app was set to, or what its repository asks for. Pure.

use crate::BuildError;
use flex_model::StackName;

/// The stack of a build, and a line for its log where someone could expect another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) stack: StackName,
    pub(crate) note: Option<String>,
}

/// `set`: the app's stack; `by_hand`: someone chose it; `wanted`: `stack` of app.json; `known`: the stacks of this machine.
///
/// # Errors
/// app.json asks for one that is not here.
pub(crate) fn choose(set: &StackName, by_hand: bool, wanted: Option<&str>, known: &[StackName]) -> Result<Choice, BuildError> {
    let as_set = |note: Option<String>| Ok(Choice { stack: set.clone(), note });
    let Some(wanted) = wanted.filter(|w| *w != set.as_str()) else { return as_set(None) };
    // A repository that came from Heroku names Heroku's; they mean this server's, as they do where an app is made.
    if wanted.starts_with("heroku") || wanted == "container" {
        return as_set(Some(format!("       app.json asks for Heroku's stack {wanted}: here that is {set}")));
    }
    if by_hand {
        return as_set(Some(format!(
            " !     app.json asks for the stack {wanted}, but this app was set to {set} (flex stack:set)"
        )));
    }
    match known.iter().find(|k| k.as_str() == wanted) {
        Some(found) => Ok(Choice { stack: found.clone(), note: None }),
        None => {
            let names: Vec<&str> = known.iter().map(StackName::as_str).collect();
            let message =
                format!("app.json asks for the stack {wanted}, which is not on this server. Here are: {}", names.join(", "));
            Err(BuildError::user("unknown_stack", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> StackName {
        s.parse().unwrap()
    }

    #[test]
    fn the_repository_chooses_where_nobody_did() {
        let (set, known) = (name("flex-13"), [name("flex-13"), name("mini")]);
        let chosen = |by_hand, wanted| choose(&set, by_hand, wanted, &known).map(|c| (c.stack.to_string(), c.note.is_some()));
        assert_eq!(chosen(false, None), Ok(("flex-13".into(), false)));
        assert_eq!(chosen(false, Some("flex-13")), Ok(("flex-13".into(), false)));
        assert_eq!(chosen(false, Some("mini")), Ok(("mini".into(), false)));
        assert_eq!(chosen(true, Some("mini")), Ok(("flex-13".into(), true)), "set by hand, and said");
        assert_eq!(chosen(false, Some("heroku-24")), Ok(("flex-13".into(), true)));
        assert_eq!(chosen(false, Some("container")), Ok(("flex-13".into(), true)));
        let e = chosen(false, Some("maxi")).unwrap_err();
        assert_eq!(e.code(), "unknown_stack");
        assert!(e.to_string().contains("maxi") && e.to_string().contains("flex-13, mini"), "{e}");
    }
}
