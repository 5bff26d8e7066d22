//! Field selectors, as far as a request's name depends on them (`apimachinery/pkg/fields/selector.go`).

/// The value that the selector demands of `field`; `None` where it demands none or the selector does not parse.
pub(super) fn exact_match(selector: &str, field: &str) -> Option<String> {
    let mut terms = split_terms(selector);
    // The API server sorts the terms, so of several demands on one field the least term counts.
    terms.sort_unstable();
    let mut demanded = None;
    for term in terms.into_iter().filter(|term| !term.is_empty()) {
        let (name, operator, value) = split_term(term)?;
        let value = unescape(value)?;
        if name == field && operator != "!=" && demanded.is_none() {
            demanded = Some(value);
        }
    }
    demanded
}

/// Splits at the commas that no backslash escapes; escapes stay in the terms.
fn split_terms(selector: &str) -> Vec<&str> {
    let mut escaped = false;
    selector
        .split(|character| {
            let separates = character == ',' && !escaped;
            escaped = character == '\\' && !escaped;
            separates
        })
        .collect()
}

/// Splits at the first operator; nothing can be escaped on its left.
fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    term.char_indices().find_map(|(at, _)| {
        let (name, rest) = term.split_at(at);
        // `==` before `=`, which would leave a `=` in the value.
        let operator = ["!=", "==", "="].into_iter().find(|operator| rest.starts_with(operator))?;
        Some((name, operator, rest.strip_prefix(operator)?))
    })
}

fn unescape(value: &str) -> Option<String> {
    let mut unescaped = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        unescaped.push(match character {
            '\\' => characters.next().filter(|escaped| matches!(escaped, '\\' | ',' | '='))?,
            ',' | '=' => return None,
            plain => plain,
        });
    }
    Some(unescaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_demand_on_the_field_is_found_among_others() {
        for (selector, name) in [
            ("metadata.name=a", Some("a")),
            ("metadata.name==a", Some("a")),
            ("spec.nodeName=n,metadata.name=a", Some("a")),
            (",metadata.name=a,", Some("a")),
            ("metadata.name=b,metadata.name=a", Some("a")),
            ("metadata.name=", Some("")),
            (r"metadata.name=a\,b\=c\\", Some(r"a,b=c\")),
            ("metadata.name!=a", None),
            ("metadata.namespace=a", None),
            ("metadata.name=a,foo", None),
            ("metadata.name=a=b", None),
            (r"metadata.name=a\", None),
            (r"metadata.name=\a", None),
            ("", None),
        ] {
            assert_eq!(exact_match(selector, "metadata.name").as_deref(), name, "{selector:?}");
        }
    }

    proptest! {
        #[test]
        fn an_escaped_value_is_read_back(value in ".*") {
            let escaped = value.replace('\\', r"\\").replace(',', r"\,").replace('=', r"\=");
            prop_assert_eq!(exact_match(&format!("a=b,metadata.name={escaped}"), "metadata.name"), Some(value));
        }
    }
}
