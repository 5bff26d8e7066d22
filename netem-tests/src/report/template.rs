//! Text with places for figures.
//!
//! `{{a b c}}` is the number found by that path, `{{a b c / d e f}}` a ratio, in which either side may be a number itself, and
//! `{{a b c <= 3}}` says whether a bound is kept. What was not measured says so in its place.

use serde_json::Value;

use super::table::number;

/// Why a text cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A place that does not end.
    #[error("`{{{{` without `}}}}` behind {0:?}")]
    Open(String),
    /// A place with nothing in it that could be looked up.
    #[error("`{{{{{0}}}}}` is no path, ratio or bound")]
    Malformed(String),
}

/// Puts figures into their places.
///
/// # Errors
/// A place is not written as it has to be.
pub fn fill(template: &str, figures: &Value) -> Result<String, TemplateError> {
    let mut text = String::with_capacity(template.len());
    for piece in pieces(template)? {
        match piece {
            Piece::Text(piece) => text.push_str(piece),
            Piece::Place(place) => text.push_str(&place.show(figures)),
        }
    }
    Ok(text)
}

/// The paths in a text's places.
///
/// # Errors
/// A place is not written as it has to be.
pub fn paths(template: &str) -> Result<Vec<Vec<&str>>, TemplateError> {
    let places = pieces(template)?.into_iter().filter_map(|piece| match piece {
        Piece::Text(_) => None,
        Piece::Place(place) => Some(place),
    });
    let terms = places.flat_map(|place| [Some(place.number.above), place.number.below]).flatten();
    Ok(terms.filter_map(|term| if let Term::Path(path) = term { Some(path) } else { None }).collect())
}

/// What stands where a figure is missing.
const MISSING: &str = "not measured";

enum Piece<'a> {
    Text(&'a str),
    Place(Place<'a>),
}

struct Place<'a> {
    number: Ratio<'a>,
    bound: Option<Bound>,
}

struct Ratio<'a> {
    above: Term<'a>,
    below: Option<Term<'a>>,
}

enum Term<'a> {
    Number(f64),
    Path(Vec<&'a str>),
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

fn pieces(template: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let (mut pieces, mut rest) = (Vec::new(), template);
    while let Some((before, behind)) = rest.split_once("{{") {
        let open = || TemplateError::Open(before.lines().last().unwrap_or_default().to_owned());
        let (place, after) = behind.split_once("}}").ok_or_else(open)?;
        let malformed = || TemplateError::Malformed(place.to_owned());
        pieces.extend([Piece::Text(before), Piece::Place(Place::parse(place).ok_or_else(malformed)?)]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (number, bound) = match (text.split_once(" <= "), text.split_once(" >= ")) {
            (Some((number, bound)), _) => (number, Some(Bound::AtMost(bound.trim().parse().ok()?))),
            (_, Some((number, bound))) => (number, Some(Bound::AtLeast(bound.trim().parse().ok()?))),
            _ => (text, None),
        };
        let number = match number.split_once(" / ") {
            Some((above, below)) => Ratio { above: Term::parse(above)?, below: Some(Term::parse(below)?) },
            None => Ratio { above: Term::parse(number)?, below: None },
        };
        Some(Self { number, bound })
    }

    fn show(&self, figures: &Value) -> String {
        let Some(value) = self.number.value(figures) else { return MISSING.to_owned() };
        let is_kept = match self.bound {
            None => return number(value),
            Some(Bound::AtMost(bound)) => value <= bound,
            Some(Bound::AtLeast(bound)) => value >= bound,
        };
        (if is_kept { "reached" } else { "not reached" }).to_owned()
    }
}

impl Ratio<'_> {
    fn value(&self, figures: &Value) -> Option<f64> {
        let above = self.above.value(figures)?;
        match &self.below {
            // What was never there has no ratio.
            Some(below) => below.value(figures).filter(|below| *below != 0.0).map(|below| above / below),
            None => Some(above),
        }
    }
}

impl<'a> Term<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        match words.as_slice() {
            [] => None,
            [word] if word.parse::<f64>().is_ok() => word.parse().ok().map(Self::Number),
            _ => Some(Self::Path(words)),
        }
    }

    fn value(&self, figures: &Value) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Path(path) => path.iter().try_fold(figures, |value, key| value.get(key))?.as_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> String {
        let figures = json!({"mixed": {"quic/bbr": {"p99": 109.4}, "tcp/cubic": {"p99": 4287}}, "none": 0});
        fill(template, &figures).unwrap()
    }

    #[test]
    fn figures_stand_in_their_places() {
        assert_eq!(filled("a {{mixed quic/bbr p99}} ms, {{ mixed tcp/cubic p99 }} b"), "a 109 ms, 4287 b");
    }

    #[test]
    fn a_ratio_may_have_a_number_on_either_side() {
        assert_eq!(filled("{{mixed quic/bbr p99 / mixed tcp/cubic p99}} {{mixed quic/bbr p99 / 50}}"), "0.03 2.19");
    }

    #[test]
    fn a_bound_is_reached_or_not() {
        assert_eq!(
            filled("{{mixed quic/bbr p99 / 100 <= 1.1}}, {{mixed quic/bbr p99 >= 110}}"),
            "reached, not reached"
        );
    }

    #[test]
    fn what_was_not_measured_says_so() {
        assert_eq!(filled("{{mixed quic/bbr p50}}, {{mixed quic/bbr p99 / none}}"), "not measured, not measured");
    }

    #[test]
    fn a_place_that_cannot_be_read_is_an_error() {
        assert_eq!(fill("{{}}", &json!({})), Err(TemplateError::Malformed(String::new())));
        assert_eq!(fill("{{a <= b}}", &json!({})), Err(TemplateError::Malformed("a <= b".to_owned())));
        assert_eq!(fill("x {{a", &json!({})), Err(TemplateError::Open("x ".to_owned())));
    }

    #[test]
    fn paths_are_listed_without_numbers() {
        assert_eq!(paths("{{a b / 50}} {{c}}").unwrap(), [vec!["a", "b"], vec!["c"]]);
    }
}
