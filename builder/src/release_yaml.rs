//! What `bin/release` prints: a small strict subset of YAML, three keys of it. No anchors, aliases, tags or nesting beyond
//! what the three keys need, so nothing can expand.

use flex_model::{ConfigKey, ProcessType};
use std::collections::BTreeMap;

/// The three keys that count; others are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleaseInfo {
    pub addons: Vec<String>,
    pub config_vars: BTreeMap<ConfigKey, String>,
    pub default_process_types: BTreeMap<ProcessType, String>,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bin/release printed something that is not the expected YAML, line {line}: {problem}")]
pub struct ReleaseYamlError {
    /// From 1.
    pub line: usize,
    pub problem: String,
}

/// Largest accepted output.
pub const MAX_BYTES: usize = 64 << 10;

/// Reads the output of `bin/release`.
///
/// # Errors
/// The first line that is outside the subset, or a name that breaks its grammar.
pub fn parse(text: &str) -> Result<ReleaseInfo, ReleaseYamlError> {
    if text.len() > MAX_BYTES {
        return Err(ReleaseYamlError { line: 1, problem: "more than 64 KiB".into() });
    }
    let mut out = ReleaseInfo::default();
    let mut section = String::new();
    for (i, raw) in text.lines().enumerate() {
        let fail = |problem: String| ReleaseYamlError { line: i + 1, problem };
        let line = without_comment(raw.trim_end());
        let body = line.trim();
        if body.is_empty() || body == "..." {
            continue;
        }
        let indented = line.starts_with([' ', '\t']) || body == "-" || body.starts_with("- ");
        if !indented {
            let rest = body.strip_prefix("---").map_or(body, str::trim);
            if rest.is_empty() || rest == "{}" {
                continue;
            }
            let (key, value) = pair(rest).map_err(fail)?;
            section = key;
            inline_value(&mut out, &section, value).map_err(fail)?;
            continue;
        }
        match body.strip_prefix('-') {
            Some(item) => add_item(&mut out, &section, item.trim()),
            None => pair(body).and_then(|(k, v)| add_pair(&mut out, &section, &k, v)),
        }
        .map_err(fail)?;
    }
    Ok(out)
}

fn known(section: &str) -> bool {
    matches!(section, "addons" | "config_vars" | "default_process_types")
}

fn inline_value(out: &mut ReleaseInfo, section: &str, value: &str) -> Result<(), String> {
    if value.is_empty() || matches!(value, "{}" | "[]" | "~" | "null") || !known(section) {
        return Ok(());
    }
    let inner = |open, close| value.strip_prefix(open).and_then(|v| v.strip_suffix(close));
    if let Some(list) = inner('[', ']') {
        return split_flow(list).into_iter().try_for_each(|item| add_item(out, section, item));
    }
    if let Some(map) = inner('{', '}') {
        return split_flow(map).into_iter().try_for_each(|item| pair(item).and_then(|(k, v)| add_pair(out, section, &k, v)));
    }
    Err(format!("{section} must be a list or a mapping"))
}

fn add_item(out: &mut ReleaseInfo, section: &str, item: &str) -> Result<(), String> {
    match section {
        "addons" => out.addons.push(scalar(item)?),
        "config_vars" | "default_process_types" => return Err(format!("{section} must be a mapping, not a list")),
        _ => {}
    }
    if out.addons.len() > 100 { Err("more than 100 add-ons".into()) } else { Ok(()) }
}

fn add_pair(out: &mut ReleaseInfo, section: &str, key: &str, value: &str) -> Result<(), String> {
    if !known(section) {
        return Ok(());
    }
    let value = scalar(value)?;
    if value.contains('\0') || value.len() > flex_model::procfile::MAX_COMMAND {
        return Err(format!("the value of {key} is too long or holds a NUL byte"));
    }
    match section {
        "config_vars" => {
            out.config_vars.insert(key.parse().map_err(|e: flex_model::Invalid| e.to_string())?, value);
        }
        "default_process_types" => {
            out.default_process_types.insert(key.parse().map_err(|e: flex_model::Invalid| e.to_string())?, value);
        }
        _ => return Err("addons must be a list, not a mapping".into()),
    }
    if out.default_process_types.len().max(out.config_vars.len()) > 100 {
        return Err(format!("more than 100 entries in {section}"));
    }
    Ok(())
}

/// `key: value`, the key maybe quoted.
fn pair(text: &str) -> Result<(String, &str), String> {
    let expected = || format!("expected `key: value`, found {:?}", text.chars().take(60).collect::<String>());
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let end = text[1..].find(quote).ok_or_else(expected)? + 1;
        let rest = text[end + 1..].trim_start().strip_prefix(':').ok_or_else(expected)?;
        return Ok((text[1..end].to_owned(), rest.trim()));
    }
    let at = text.find(": ").or_else(|| text.strip_suffix(':').map(str::len)).ok_or_else(expected)?;
    // Ruby's YAML writes symbol keys as `:web`.
    let key = text[..at].trim();
    Ok((key.strip_prefix(':').unwrap_or(key).to_owned(), text[at + 1..].trim()))
}

fn scalar(text: &str) -> Result<String, String> {
    let text = text.trim();
    let Some(first) = text.chars().next() else { return Ok(String::new()) };
    match first {
        '"' => double_quoted(text),
        '\'' => {
            let inner = text[1..].strip_suffix('\'').filter(|_| text.len() > 1).ok_or("a quote is not closed")?;
            Ok(inner.replace("''", "'"))
        }
        '&' | '*' | '!' | '|' | '>' | '%' | '@' | '`' | '[' | '{' => {
            Err(format!("{first:?} cannot start a plain value here: quote it"))
        }
        _ => Ok(text.to_owned()),
    }
}

fn double_quoted(text: &str) -> Result<String, String> {
    let inner = text[1..].strip_suffix('"').filter(|_| text.len() > 1).ok_or("a quote is not closed")?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some(c @ ('"' | '\\' | '/')) => out.push(c),
            _ => return Err("an unknown escape in a quoted value".into()),
        }
    }
    Ok(out)
}

/// Splits at commas outside quotes.
fn split_flow(text: &str) -> Vec<&str> {
    let (mut out, mut start, mut quote) = (Vec::new(), 0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            (None, ',') => {
                out.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(text[start..].trim());
    out.retain(|s| !s.is_empty());
    out
}

/// Cuts a `#` comment that starts the line or follows a space, outside quotes.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (i, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before.is_whitespace() => return line[..i].trim_end(),
            // An apostrophe within a word opens nothing.
            (None, '"' | '\'') if before.is_whitespace() || matches!(before, '[' | '{' | ',') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().default_process_types.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }

    #[test]
    fn as_buildpacks_print_it() {
        let r = parse(
            "---\naddons:\n- heroku-postgresql:mini\n  - redis # small\nconfig_vars:\n  LANG: en_US.UTF-8\n  'Q': \"a: b\\n\"\n\
             default_process_types:\n  web: bin/web -p $PORT -e 'x y'\n  :rake: bundle exec rake\nother:\n  deep: [1]\n",
        )
        .unwrap();
        assert_eq!(r.addons, ["heroku-postgresql:mini", "redis"]);
        assert_eq!(r.config_vars.values().collect::<Vec<_>>(), ["en_US.UTF-8", "a: b\n"]);
        assert_eq!(r.default_process_types.values().collect::<Vec<_>>(), ["bundle exec rake", "bin/web -p $PORT -e 'x y'"]);
        for empty in ["", "--- {}", "---\n{}\n", "--- {}\n...", "addons: []\nconfig_vars: {}\ndefault_process_types: {}\n"] {
            assert_eq!(parse(empty).unwrap(), ReleaseInfo::default(), "{empty:?}");
        }
        assert_eq!(
            types("default_process_types: {web: \"a, b\", worker: c}\n"),
            [("web".into(), "a, b".into()), ("worker".into(), "c".into())]
        );
        assert_eq!(types("default_process_types:\r\n  web: it's # fine\r\n"), [("web".into(), "it's".into())]);
    }

    #[test]
    fn hostile_output_is_refused() {
        let bomb = "a: &a [x,x]\naddons: *a\n";
        for bad in [
            bomb,
            "default_process_types:\n  $(id): x",
            "default_process_types:\n  web: !!python/object x",
            "hello",
            "config_vars:\n  LD PRELOAD: x",
            "default_process_types:\n  - web",
            "addons: x",
            "config_vars:\n  A: \"x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"x".repeat(MAX_BYTES + 1)).is_err());
        assert_eq!(parse("a: b\nconfig_vars:\n  1A: x").unwrap_err().line, 3);
    }
}
