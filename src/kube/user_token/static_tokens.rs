//! Tokens in a file, in the format of kube-apiserver's `--token-auth-file`.

use std::collections::HashMap;
use std::fmt;

use super::TokenHash;
use crate::wire::{BearerToken, Identity};

/// The users of a token file. It keeps hashes of the tokens, not the tokens.
#[derive(Clone, Default)]
pub struct StaticTokens {
    users: HashMap<TokenHash, Identity>,
}

impl StaticTokens {
    /// Reads lines of `token,user,uid,"group1,group2"`; the groups may be missing, the uid may be empty.
    ///
    /// The API server skips lines it does not like; here each is an error, because a user who cannot log in is noticed late.
    pub fn parse(csv: &str) -> Result<Self, InvalidTokenFile> {
        let mut users = HashMap::new();
        for (number, line) in (1..).zip(csv.lines()).filter(|(_, line)| !line.is_empty()) {
            let (token, identity) = parse_line(line).map_err(|why| InvalidTokenFile { line: number, why })?;
            if users.insert(TokenHash::of(&token), identity).is_some() {
                return Err(InvalidTokenFile { line: number, why: "the token stands on an earlier line too" });
            }
        }
        Ok(Self { users })
    }

    /// Who bears the token with this hash.
    pub fn identify(&self, token: &TokenHash) -> Option<&Identity> {
        self.users.get(token)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticTokens").field("tokens", &self.users.len()).finish()
    }
}

/// A line that cannot be used. It does not hold the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the token file: {why}; a line is token,user,uid,\"group1,group2\"")]
pub struct InvalidTokenFile {
    line: usize,
    why: &'static str,
}

fn parse_line(line: &str) -> Result<(BearerToken, Identity), &'static str> {
    let fields = split_fields(line)?;
    let (token, user, uid, groups) = match fields.as_slice() {
        [token, user, uid] => (token, user, uid, ""),
        [token, user, uid, groups] => (token, user, uid, groups.as_str()),
        [_, _, _, _, ..] => return Err("it has more than four fields; put several groups in one pair of quotes"),
        _ => return Err("it has fewer than three fields"),
    };
    let token = BearerToken::new(token).ok_or("the token is empty or has a character no token may have")?;
    if user.is_empty() {
        return Err("the user is empty");
    }
    let identity = Identity {
        user: user.clone(),
        uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
        groups: groups.split(',').filter(|group| !group.is_empty()).map(str::to_owned).collect(),
        extra: Vec::new(),
    };
    Ok((token, identity))
}

/// Splits a line at its commas (RFC 4180, section 2); a field in quotes may hold commas, and quotes as `""`, but no line break.
fn split_fields(line: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => plain_field(rest)?,
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err("a closing quote is followed by more than a comma"),
        }
    }
}

fn plain_field(text: &str) -> Result<(String, &str), &'static str> {
    let (field, after) = text.split_at(text.find(',').unwrap_or(text.len()));
    if field.contains('"') {
        return Err("a field holds a quote but does not begin with one");
    }
    Ok((field.to_owned(), after))
}

/// Reads up to the closing quote; the opening one is already gone.
fn quoted_field(text: &str) -> Result<(String, &str), &'static str> {
    let mut field = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('"') {
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, after)),
        }
    }
    Err("a quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(text: &str) -> TokenHash {
        TokenHash::of(&BearerToken::new(text).unwrap())
    }

    #[test]
    fn users_are_found_by_their_tokens() {
        let file = "t1,alice,7,\"devs,ops\"\r\n\nt2,bob,\n\"t,3\",\"o\"\"neil\",u3,single\nt4,eve,,\"\"\n";
        let tokens = StaticTokens::parse(file).unwrap();
        assert_eq!(tokens.len(), 4);
        let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let alice =
            Identity { uid: Some("7".to_owned()), groups: groups(&["devs", "ops"]), ..Identity::named("alice") };
        assert_eq!(tokens.identify(&token("t1")), Some(&alice));
        assert_eq!(tokens.identify(&token("t2")), Some(&Identity::named("bob")));
        let neil = Identity { uid: Some("u3".to_owned()), groups: groups(&["single"]), ..Identity::named("o\"neil") };
        assert_eq!(tokens.identify(&token("t,3")), Some(&neil));
        assert_eq!(tokens.identify(&token("t4")), Some(&Identity::named("eve")));
        assert_eq!(tokens.identify(&token("t")), None);
        assert!(StaticTokens::parse("\n").unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_never_by_its_token() {
        for line in [
            "secret",
            "secret,alice",
            ",alice,1",
            "secret,,1",
            "sec ret,alice,1",
            "secret,alice,1,devs,ops",
            "secret,alice,1,\"devs",
            "secret,alice,1,\"devs\"x",
            "secret,al\"ice,1",
            "good,again,1",
        ] {
            let error = StaticTokens::parse(&format!("good,bob,1\n{line}\n")).unwrap_err();
            assert!(error.to_string().starts_with("line 2 "), "{line}: {error}");
            assert!(!error.to_string().contains("secret") && !format!("{error:?}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn tokens_are_not_printed() {
        assert_eq!(format!("{:?}", StaticTokens::parse("secret,a,b").unwrap()), "StaticTokens { tokens: 1 }");
    }

    proptest! {
        #[test]
        fn no_file_panics(file in "[a,\"\n\r é]{0,40}") {
            let _ = StaticTokens::parse(&file);
        }

        #[test]
        fn quoted_fields_are_read_back(fields in prop::collection::vec("[a,\" é]{0,6}", 1..5)) {
            let line: Vec<_> = fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
            prop_assert_eq!(split_fields(&line.join(",")), Ok(fields));
        }
    }
}
