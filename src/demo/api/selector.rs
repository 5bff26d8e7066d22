//! Label and field selectors of lists and watches (`k8s.io/apimachinery/pkg/labels`, `…/fields`).

use serde_json::Value;

use super::status::ApiError;

/// Which objects of a collection are meant.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    /// Parses the two query parameters. Errors: 400 with what is wrong.
    pub fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, ApiError> {
        Ok(Self {
            labels: requirements(labels.unwrap_or_default())?,
            fields: requirements(fields.unwrap_or_default())?,
        })
    }

    /// Whether this object is meant.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|r| r.holds(object["metadata"]["labels"][&r.key].as_str()))
            && self.fields.iter().all(|r| r.holds(Some(field(object, &r.key))))
    }
}

/// The value below a dotted path, `""` where there is none, as field selectors compare.
fn field<'a>(object: &'a Value, path: &str) -> &'a str {
    path.split('.').fold(object, |value, key| &value[key]).as_str().unwrap_or_default()
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(wanted) => value.is_some_and(|v| wanted.iter().any(|w| w == v)),
            Test::NotIn(unwanted) => value.is_none_or(|v| unwanted.iter().all(|w| w != v)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (key, test) = if let Some((key, values)) = set(text, " notin ") {
            (key, Test::NotIn(values))
        } else if let Some((key, values)) = set(text, " in ") {
            (key, Test::In(values))
        } else if let Some((key, value)) = text.split_once("!=") {
            (key, Test::NotIn(vec![value.trim().to_owned()]))
        } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            (key, Test::In(vec![value.trim().to_owned()]))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Test::Absent)
        } else {
            (text, Test::Exists)
        };
        let key = key.trim();
        let plausible = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        plausible.then(|| Self { key: key.to_owned(), test })
    }
}

fn set<'a>(text: &'a str, operator: &str) -> Option<(&'a str, Vec<String>)> {
    let (key, values) = text.split_once(operator)?;
    let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some((key, values.split(',').map(|v| v.trim().to_owned()).collect()))
}

fn requirements(text: &str) -> Result<Vec<Requirement>, ApiError> {
    split_outside_parentheses(text)
        .into_iter()
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let error = || ApiError::bad_request(format!("unable to parse requirement: {part:?}"));
            Requirement::parse(part).ok_or_else(error)
        })
        .collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(labels: &str) -> bool {
        let object = json!({"metadata": {"name": "web", "labels": {"app": "web", "tier": "front"}}});
        Selector::parse(Some(labels), None).unwrap().matches(&object)
    }

    #[test]
    fn equality_and_sets_select_by_label() {
        assert!(matches("app=web,tier in (front, back),!missing,app"));
        assert!(matches("tier notin (back),app!=other"));
        assert!(!matches("app=web,tier=back"));
    }

    #[test]
    fn a_name_is_selected_by_field() {
        let selector = Selector::parse(None, Some("metadata.name=web")).unwrap();
        assert!(selector.matches(&json!({"metadata": {"name": "web"}})));
        assert!(!selector.matches(&json!({"metadata": {"name": "other"}})));
    }

    #[test]
    fn nonsense_is_a_bad_request() {
        assert!(Selector::parse(Some("a b c"), None).is_err());
    }
}
