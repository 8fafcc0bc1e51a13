//! Help, completions and man pages, all made from the one grammar.

use crate::args::{Cli, split_topic};
use crate::error::{CliError, Result, while_doing};
use clap::{Command, CommandFactory};
use std::path::Path;

/// The commands as they are typed: `ps:scale` beside `ps`.
fn flat() -> Command {
    let whole = Cli::command();
    let mut out = Command::new("flex").about(whole.get_about().cloned().unwrap_or_default());
    for arg in whole.get_arguments() {
        out = out.arg(arg.clone());
    }
    for topic in whole.get_subcommands() {
        let name = topic.get_name().to_owned();
        for verb in topic.get_subcommands() {
            out = out.subcommand(without_verbs(verb, format!("{name}:{}", verb.get_name())));
        }
        out = out.subcommand(without_verbs(topic, name));
    }
    out.disable_help_subcommand(true)
}

/// A topic or a verb by itself, without what is below it and without other spellings.
fn without_verbs(topic: &Command, name: String) -> Command {
    let mut out = Command::new(leak(name));
    if let Some(about) = topic.get_about() {
        out = out.about(about.clone());
    }
    if let Some(more) = topic.get_after_help() {
        out = out.after_help(more.clone());
    }
    out.args(topic.get_arguments().cloned())
}

/// clap keeps names for as long as the program runs, which ends soon.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    if shell == clap_complete::Shell::Bash {
        // Otherwise bash breaks words at the colon of ps:scale.
        text.extend_from_slice(b"COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}\n");
    }
    clap_complete::generate(shell, &mut flat(), "flex", &mut text);
    crate::output::raw(&text);
    Ok(())
}

/// `flex.1`, and a page for each topic with its verbs.
pub fn pages(folder: &Path) -> Result<()> {
    let failed = |e: std::io::Error| while_doing::<std::io::Error>(format!("write man pages into {}", folder.display()))(e);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut whole = Cli::command().disable_help_flag(true);
    whole.build();
    let write = |name: &str, command: Command| {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).title(name.to_uppercase()).render(&mut text).map_err(failed)?;
        std::fs::write(folder.join(format!("{name}.1")), text).map_err(failed)
    };
    for topic in whole.get_subcommands() {
        let name = format!("flex-{}", topic.get_name());
        write(&name, topic.clone().name(leak(name.clone())))?;
        for verb in topic.get_subcommands().filter(|v| v.get_name() != "help") {
            let name = format!("flex-{}-{}", topic.get_name(), verb.get_name().replace(':', "-"));
            write(&name, verb.clone().name(leak(name.clone())))?;
        }
    }
    write("flex", whole.clone())
}

/// `flex help`, `flex help ps`, `flex help ps:scale`, `flex help ps scale`.
pub fn help(topic: &[String]) -> Result<()> {
    let words = split_topic(std::iter::once("flex".to_owned()).chain(topic.iter().cloned()));
    let mut found = Cli::command();
    found.build();
    for word in &words[1..] {
        if word.starts_with('-') {
            break;
        }
        let next = found.find_subcommand(word).cloned();
        found = next.ok_or_else(|| {
            let near = nearest(word, &found).map(|n| format!("Did you mean {n}?"));
            CliError::usage(format!("There is no help on {}.", topic.join(" ")))
                .hint(near.unwrap_or_else(|| "See: flex help".into()))
        })?;
    }
    found.print_long_help().map_err(while_doing("print the help"))
}

/// The command whose name differs least.
fn nearest(word: &str, within: &Command) -> Option<String> {
    let names = within.get_subcommands().map(|c| c.get_name().to_owned());
    names.map(|n| (distance(word, &n), n)).filter(|(d, n)| *d <= n.len().max(3) / 2).min().map(|(_, n)| n)
}

/// Insertions, removals and replacements between two words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let now = (before + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            before = std::mem::replace(&mut row[j + 1], now);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_is_what_can_be_typed() {
        flat().debug_assert();
        let names: Vec<String> = flat().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        for name in ["ps", "ps:scale", "config:set", "checks:unset", "apps:clone", "builds:cache:purge"] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
        assert_eq!(nearest("confg", &flat()).as_deref(), Some("config"));
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn each_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(dir.path()).unwrap();
        for (page, says) in [("flex", "git push"), ("flex-ps-scale", "worker+1"), ("flex-config", "config:edit")] {
            let text = std::fs::read_to_string(dir.path().join(format!("{page}.1"))).unwrap();
            assert!(text.contains(".TH") && text.contains(says), "{page}: {text}");
        }
    }

    #[test]
    fn shells_get_the_names_with_their_colons() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut flat(), "flex", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("ps:scale") || text.contains("ps\\:scale") || text.contains("ps\\\\:scale"), "{shell}");
        }
    }
}
