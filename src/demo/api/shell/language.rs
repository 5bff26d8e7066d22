//! As much of the shell's language as the sample needs: lists, pipes, quotes, variables, redirections.

use crate::demo::api::process::Output;

/// How a pipeline follows the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// In any case.
    Always,
    /// `&&`.
    And,
    /// `||`.
    Or,
}

/// One command, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    /// Program and arguments.
    pub words: Vec<String>,
    redirections: Vec<Redirection>,
}

#[derive(Debug, PartialEq, Eq)]
enum Redirection {
    StdoutToStderr,
    StderrToStdout,
    ToFile { stderr: bool, path: String, append: bool },
}

/// Where an output goes.
#[derive(Clone)]
pub(super) enum Redirect {
    /// Where it would.
    None(Output),
    /// Nowhere.
    Null,
    /// Into a file.
    File { path: String, append: bool },
}

impl Command {
    /// Where standard output and standard error go, given where they would.
    pub fn outputs(&self, stdout: &Output, stderr: &Output) -> (Redirect, Redirect) {
        let (mut out, mut err) = (Redirect::None(stdout.clone()), Redirect::None(stderr.clone()));
        for redirection in &self.redirections {
            match redirection {
                Redirection::StdoutToStderr => out = err.clone(),
                Redirection::StderrToStdout => err = out.clone(),
                Redirection::ToFile { stderr, path, append } => {
                    let target = if path == "/dev/null" {
                        Redirect::Null
                    } else {
                        Redirect::File { path: path.clone(), append: *append }
                    };
                    *(if *stderr { &mut err } else { &mut out }) = target;
                }
            }
        }
        (out, err)
    }
}

/// Cuts a script into pipelines, and those into commands, outside of quotes.
pub(super) fn split(script: &str) -> Vec<(Join, Vec<&str>)> {
    let mut pipelines = Vec::new();
    let (mut join, mut commands, mut start) = (Join::Always, Vec::new(), 0);
    let mut scanner = Scanner::new(script);
    while let Some((position, character)) = scanner.next_unquoted() {
        let doubled = script[position..].starts_with("&&") || script[position..].starts_with("||");
        let next_join = match character {
            ';' | '\n' => Join::Always,
            '&' if doubled => Join::And,
            '|' if doubled => Join::Or,
            '|' => {
                commands.push(&script[start..position]);
                start = position + 1;
                continue;
            }
            _ => continue,
        };
        commands.push(&script[start..position]);
        pipelines.push((join, std::mem::take(&mut commands)));
        start = position + 1;
        if doubled {
            scanner.next_unquoted();
            start += 1;
        }
        join = next_join;
    }
    commands.push(&script[start..]);
    pipelines.push((join, commands));
    pipelines
}

/// Takes one command apart. Errors: what cannot be understood.
pub(super) fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Command, String> {
    let mut command = Command::default();
    let mut words = words(text, variable)?.into_iter();
    while let Some((word, quoted)) = words.next() {
        if quoted || !word.contains('>') {
            command.words.push(word);
            continue;
        }
        let redirection = match word.as_str() {
            ">&2" | "1>&2" => Redirection::StdoutToStderr,
            "2>&1" => Redirection::StderrToStdout,
            other => to_file(other, &mut words)?,
        };
        command.redirections.push(redirection);
    }
    Ok(command)
}

fn to_file(word: &str, words: &mut impl Iterator<Item = (String, bool)>) -> Result<Redirection, String> {
    let (stderr, rest) = match word.strip_prefix('2') {
        Some(rest) => (true, rest),
        None => (false, word.strip_prefix('1').unwrap_or(word)),
    };
    let (append, path) = match (rest.strip_prefix(">>"), rest.strip_prefix('>')) {
        (Some(path), _) => (true, path),
        (None, Some(path)) => (false, path),
        (None, None) => return Err(format!("syntax error: {word}")),
    };
    let path = if path.is_empty() { words.next().map(|(word, _)| word) } else { Some(path.to_owned()) };
    let path = path.ok_or_else(|| "syntax error: a file name is missing".to_owned())?;
    Ok(Redirection::ToFile { stderr, path, append })
}

/// The words, and of each whether any of it was quoted.
fn words(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<(String, bool)>, String> {
    let mut words = Vec::new();
    let mut word: Option<(String, bool)> = None;
    let mut rest = text.chars().peekable();
    let mut quote = None;
    while let Some(character) = rest.next() {
        match (quote, character) {
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default().1 = true;
            }
            (Some(open), close) if open == close => quote = None,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None | Some('"'), '$') => {
                let mut name = String::new();
                while rest.peek().is_some_and(|c| c.is_alphanumeric() || "_?{}".contains(*c)) {
                    name.extend(rest.next());
                }
                let value = variable(name.trim_matches(['{', '}'])).unwrap_or_default();
                word.get_or_insert_default().0.push_str(&value);
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().0.extend(rest.next()),
            (_, c) => word.get_or_insert_default().0.push(c),
        }
    }
    if quote.is_some() {
        return Err("syntax error: unterminated quoted string".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// Steps over what is quoted.
struct Scanner<'a> {
    characters: std::str::CharIndices<'a>,
    quote: Option<char>,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self { characters: text.char_indices(), quote: None }
    }

    /// The next character outside of quotes. The `&` of a redirection (`>&2`) is part of its word.
    fn next_unquoted(&mut self) -> Option<(usize, char)> {
        loop {
            let (position, character) = self.characters.next()?;
            match (self.quote, character) {
                (None, '\'' | '"') => self.quote = Some(character),
                (None, '\\') | (Some('"'), '\\') => drop(self.characters.next()),
                (None, _) => return Some((position, character)),
                (Some(open), close) if open == close => self.quote = None,
                (Some(_), _) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Command {
        parse(text, &|name| (name == "A").then(|| "value".to_owned())).unwrap()
    }

    #[test]
    fn lists_and_pipes_are_cut_outside_of_quotes() {
        let parts = split("a 'x;y' | b && c || d; e");
        let expected = [
            (Join::Always, vec!["a 'x;y' ", " b "]),
            (Join::And, vec![" c "]),
            (Join::Or, vec![" d"]),
            (Join::Always, vec![" e"]),
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn variables_are_replaced_except_in_single_quotes() {
        assert_eq!(parsed(r#"echo $A "${A} b" '$A' \$A"#).words, ["echo", "value", "value b", "$A", "$A"]);
    }

    #[test]
    fn redirections_are_no_words() {
        let command = parsed("echo a >&2 2> /dev/null '>'");
        assert_eq!(command.words, ["echo", "a", ">"]);
        assert_eq!(command.redirections.len(), 2);
    }

    #[test]
    fn an_open_quote_is_an_error() {
        assert!(parse("echo 'a", &|_| None).is_err());
    }
}
