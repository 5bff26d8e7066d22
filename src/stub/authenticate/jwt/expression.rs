//! Expressions of an `AuthenticationConfiguration` in the Common Expression Language (CEL), over the variables `claims` or `user`
//! (`apiserver/pkg/authentication/cel`).
//!
//! Their author is the administrator, what they look at is signed by a trusted issuer; still nothing of either may take the
//! stub down. So expressions are bounded in length and depth, loops are not nested, and claims hold only so many values: work
//! grows with the square of those at most.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::{fmt, thread};

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::{Context, Env, Value, extensions};

/// The longest expression, in bytes.
const MAX_LENGTH: usize = 4096;

/// How deep an expression may be: operators and calls within each other, `a + b + c` among them. A level takes up to 40 KiB of
/// stack.
const MAX_DEPTH: usize = 24;

/// The most values in what an expression looks at, names of fields not counted.
const MAX_VALUES: usize = 2048;

/// Stack for reading an expression before its depth is known.
const READING_STACK: usize = 64 << 20;

/// The longest part of a reason that is told: reasons hold values of claims, which may be long.
const MAX_REASON: usize = 300;

/// What stands for a type, and the library of optional values: not a variable.
const NAMES: [&str; 12] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "optional",
    "optional_type",
    "string",
    "type",
    "uint",
];

/// What can be called besides operators and macros.
const FUNCTIONS: [&str; 32] = [
    "bool",
    "bytes",
    "charAt",
    "contains",
    "double",
    "dyn",
    "endsWith",
    "format",
    "hasValue",
    "indexOf",
    "int",
    "join",
    "lastIndexOf",
    "lowerAscii",
    "matches",
    "none",
    "of",
    "ofNonZeroValue",
    "or",
    "orValue",
    "replace",
    "reverse",
    "size",
    "split",
    "startsWith",
    "string",
    "substring",
    "trim",
    "type",
    "uint",
    "upperAscii",
    "value",
];

/// The standard functions and those for texts.
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut language = Env::stdlib();
    // It fails only where a function is declared twice, and those of texts are not in the standard.
    let _ = language.add_extension(extensions::strings);
    Arc::new(language)
});

/// An expression that can be evaluated.
#[derive(Clone)]
pub struct Expression {
    source: String,
    tree: Arc<IdedExpr>,
}

/// What an expression sees: one variable, or why there is too much of it.
pub struct Scope(Result<Context<'static, 'static>, String>);

impl Expression {
    /// Reads an expression over `variable`.
    ///
    /// # Errors
    /// What is wrong with it: it is none, too long or deep, nests loops, or names what does not exist.
    pub fn parse(source: &str, variable: &str) -> Result<Self, String> {
        let failed = |why: String| format!("the expression {source:?}: {}", shortened(&why));
        if source.len() > MAX_LENGTH {
            return Err(format!("an expression is {} bytes long, and can have {MAX_LENGTH}", source.len()));
        }
        // The parser descends far for each level, and what is too deep is dropped there as well.
        let tree = thread::scope(|scope| {
            let reader = thread::Builder::new().stack_size(READING_STACK);
            let reading = reader.spawn_scoped(scope, || read(source, variable)).map_err(|error| error.to_string())?;
            reading.join().unwrap_or_else(|_panic| Err("the parser failed".to_owned()))
        });
        Ok(Self { source: source.to_owned(), tree: Arc::new(tree.map_err(failed)?) })
    }

    /// Whether it looks at this field of `variable`: `claims.field`, `claims.?field`, `claims["field"]`, `has(claims.field)`.
    pub fn looks_at(&self, variable: &str, field: &str) -> bool {
        let is_variable = |operand: &IdedExpr| matches!(&operand.expr, Expr::Ident(name) if name == variable);
        let is_field = |operand: &IdedExpr| matches!(&operand.expr, Expr::Literal(LiteralValue::String(text)) if text.inner() == field);
        let looks = |expression: &IdedExpr| match &expression.expr {
            Expr::Select(select) => select.field == field && is_variable(&select.operand),
            Expr::Call(call) => {
                matches!(call.args.as_slice(), [first, second] if is_variable(first) && is_field(second))
            }
            _ => false,
        };
        let mut open = vec![&*self.tree];
        while let Some(expression) = open.pop() {
            if looks(expression) {
                return true;
            }
            open.extend(parts(expression));
        }
        false
    }

    /// Whether it is true.
    ///
    /// # Errors
    /// It cannot be evaluated, or is neither true nor false.
    pub fn truth(&self, scope: &Scope) -> Result<bool, String> {
        match self.evaluate(scope)? {
            Value::Bool(truth) => Ok(truth),
            _ => Err(self.failed("it is neither true nor false")),
        }
    }

    /// The text that it is.
    ///
    /// # Errors
    /// It cannot be evaluated, or is no text.
    pub fn text(&self, scope: &Scope) -> Result<String, String> {
        match self.evaluate(scope)? {
            Value::String(text) => Ok(text.as_str().to_owned()),
            _ => Err(self.failed("it is not a text")),
        }
    }

    /// The texts of which it is a list, or the one that it is. `null` has none.
    ///
    /// # Errors
    /// It cannot be evaluated, or is something else.
    pub fn texts(&self, scope: &Scope) -> Result<Vec<String>, String> {
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.as_str().to_owned()),
            _ => Err(self.failed("it is neither a text nor a list of texts")),
        };
        match self.evaluate(scope)? {
            Value::Null => Ok(Vec::new()),
            Value::List(values) => values.iter().map(text).collect(),
            value => Ok(vec![text(&value)?]),
        }
    }

    fn evaluate(&self, scope: &Scope) -> Result<Value, String> {
        let context = scope.0.as_ref().map_err(Clone::clone)?;
        // The interpreter is somebody else's: a mistake in it refuses a token, and ends nothing.
        let evaluated = catch_unwind(AssertUnwindSafe(|| Value::resolve(&self.tree, context)));
        let evaluated = evaluated.map_err(|_panic| self.failed("the interpreter failed"))?;
        evaluated.map_err(|error| self.failed(&error.to_string()))
    }

    fn failed(&self, why: &str) -> String {
        format!("{self}: {}", shortened(why))
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Expression {}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the expression {:?}", self.source)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.source).finish()
    }
}

impl Scope {
    /// One with `value` as `variable`. With too many values in it no expression can be evaluated.
    pub fn new(variable: &str, value: &serde_json::Value) -> Self {
        let count = count_of_values(value);
        if count > MAX_VALUES {
            return Self(Err(format!("{variable} holds {count} values, and expressions look at {MAX_VALUES} at most")));
        }
        let mut context = Context::with_env(LANGUAGE.clone());
        context.add_variable_from_value(variable, converted(value));
        Self(Ok(context))
    }
}

fn read(source: &str, variable: &str) -> Result<IdedExpr, String> {
    let tree = LANGUAGE.parser().parse(source).map_err(|error| error.to_string())?;
    check(&tree, &Surroundings { names: vec![variable], depth: 0, is_in_loop: false })?;
    Ok(tree)
}

/// What is known at a place within an expression.
#[derive(Clone)]
struct Surroundings<'a> {
    names: Vec<&'a str>,
    depth: usize,
    is_in_loop: bool,
}

/// Whether everything in the expression exists, and nothing goes too far.
fn check<'a>(expression: &'a IdedExpr, around: &Surroundings<'a>) -> Result<(), String> {
    let within = Surroundings { depth: around.depth + 1, ..around.clone() };
    if within.depth > MAX_DEPTH {
        return Err(format!("it is deeper than {MAX_DEPTH} levels"));
    }
    match &expression.expr {
        Expr::Ident(name) if !within.names.contains(&name.as_str()) && !NAMES.contains(&name.as_str()) => {
            return Err(format!("there is no {name}; there is {}", within.names.join(", ")));
        }
        // Operators are no words.
        Expr::Call(call)
            if call.func_name.starts_with(char::is_alphabetic) && !FUNCTIONS.contains(&call.func_name.as_str()) =>
        {
            return Err(format!("there is no function {}", call.func_name));
        }
        Expr::Struct(object) => return Err(format!("there is no type {}", object.type_name)),
        Expr::Comprehension(_) if within.is_in_loop => {
            return Err("it has a loop (all, exists, map, filter) within another one".to_owned());
        }
        Expr::Comprehension(repeated) => {
            check(&repeated.iter_range, &within)?;
            let mut inside = Surroundings { is_in_loop: true, ..within };
            inside.names.extend([repeated.iter_var.as_str(), repeated.accu_var.as_str()]);
            inside.names.extend(repeated.iter_var2.as_deref());
            return [&repeated.accu_init, &repeated.loop_cond, &repeated.loop_step, &repeated.result]
                .into_iter()
                .try_for_each(|part| check(part, &inside));
        }
        _ => {}
    }
    parts(expression).into_iter().try_for_each(|part| check(part, &within))
}

/// The expressions right below one.
fn parts(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(repeated) => {
            vec![&repeated.iter_range, &repeated.accu_init, &repeated.loop_cond, &repeated.loop_step, &repeated.result]
        }
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| parts_of_entry(&entry.expr)).collect(),
        Expr::Struct(object) => object.entries.iter().flat_map(|entry| parts_of_entry(&entry.expr)).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn parts_of_entry(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

fn count_of_values(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(values) => 1 + values.iter().map(count_of_values).sum::<usize>(),
        serde_json::Value::Object(fields) => 1 + fields.values().map(count_of_values).sum::<usize>(),
        _ => 1,
    }
}

/// Whole numbers are `int`, as the API server reads JSON (`apimachinery/pkg/util/json`).
fn converted(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(values) => Value::List(Arc::new(values.iter().map(converted).collect())),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), converted(value))).collect::<HashMap<_, _>>().into()
        }
    }
}

fn shortened(reason: &str) -> String {
    // The parser shows the line and the place in several lines; the log has one.
    let line = reason.lines().next().unwrap_or_default().trim_start_matches("ERROR: ");
    line.chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(source: &str) -> Result<Expression, String> {
        Expression::parse(source, "claims")
    }

    fn scope() -> Scope {
        let claims = json!({
            "sub": "7", "exp": 1100, "nbf": 1000, "groups": ["devs", "ops"], "company": {"org": "tools"}, "level": 1.5,
        });
        Scope::new("claims", &claims)
    }

    #[test]
    fn expressions_look_at_claims() {
        for good in [
            "claims.exp - claims.nbf <= 86400",
            "claims.company.org == 'tools' && claims['sub'] == '7'",
            "claims.groups.exists(group, group.startsWith('dev'))",
            "claims.groups.all(group, group in ['devs', 'ops'])",
            "has(claims.company) && !has(claims.nothing)",
            "claims.?nothing.orValue('x') == 'x'",
            "claims.sub.matches('^[0-9]+$') && size(claims.groups) == 2",
            "claims.level > 1 && type(claims.level) == double && type(claims.exp) == int",
            "claims.company.org.upperAscii() == 'TOOLS'",
        ] {
            assert_eq!(parse(good).unwrap().truth(&scope()), Ok(true), "{good}");
        }
        let texts = |source: &str| parse(source).unwrap().texts(&scope());
        assert_eq!(texts("claims.groups.map(group, 'oidc:' + group)").unwrap(), ["oidc:devs", "oidc:ops"]);
        assert_eq!(texts("claims.sub"), Ok(vec!["7".to_owned()]));
        assert_eq!(texts("null"), Ok(vec![]));
        assert_eq!(parse("'user-' + claims.sub").unwrap().text(&scope()), Ok("user-7".to_owned()));
    }

    #[test]
    fn what_an_expression_cannot_say_is_told() {
        for (source, part) in [
            ("claims.nothing == 'x'", "nothing"),
            ("claims.sub", "neither true nor false"),
            ("claims.sub + 1 == '8'", "operator"),
            ("claims.sub.matches('(')", "matches"),
        ] {
            let why = parse(source).unwrap().truth(&scope()).unwrap_err();
            assert!(why.contains(part) && why.contains(source), "{source}: {why}");
        }
        assert!(parse("claims.groups").unwrap().text(&scope()).is_err());
        assert!(parse("[1]").unwrap().texts(&scope()).is_err());
    }

    #[test]
    fn what_is_no_expression_is_refused_when_it_is_read() {
        for (source, part) in [
            ("claims.sub ==", "sub"),
            ("", "expression"),
            ("user.username == 'x'", "no user"),
            ("claim.sub == 'x'", "no claim"),
            ("request('https://example.com')", "no function request"),
            ("Pod{name: 'x'}.name == 'x'", "no type Pod"),
            ("claims.groups.all(a, claims.groups.exists(b, a == b))", "loop"),
            ("claims.groups.all(a, true) && a == 'x'", "no a"),
        ] {
            let why = parse(source).unwrap_err();
            assert!(why.contains(part) && !why.contains('\n'), "{source}: {why}");
        }
        assert!(parse(&format!("'{}' == ''", "x".repeat(MAX_LENGTH))).unwrap_err().contains("long"));
    }

    /// The deepest that is accepted of many kinds is evaluated on a stack half as large as that of the runtime's threads.
    #[test]
    fn no_expression_and_no_claim_overflows_the_stack() {
        let bomb = |open: &str, close: &str, times: usize| open.repeat(times) + "claims.sub" + &close.repeat(times);
        let mut accepted = 0;
        for (open, close) in [
            ("(", ")"),
            ("[", "]"),
            ("-", ""),
            ("!", ""),
            ("claims.sub + ", ""),
            ("true ? 1 : ", ""),
            ("size(", ")"),
            ("{1:", "}"),
        ] {
            for times in (1..30).chain([95, 300, 1000]) {
                let Ok(expression) = parse(&bomb(open, close, times)) else { continue };
                accepted += 1;
                let evaluating = thread::Builder::new().stack_size(1 << 20).spawn(move || {
                    let _ = expression.texts(&scope());
                    drop(expression);
                });
                evaluating.unwrap().join().unwrap();
            }
        }
        assert!(accepted > 100, "{accepted}");
    }

    #[test]
    fn claims_of_more_values_than_can_be_looked_at_are_refused() {
        let scope = Scope::new("claims", &json!({"groups": vec!["x"; MAX_VALUES]}));
        assert!(parse("true").unwrap().truth(&scope).unwrap_err().contains("2050 values"));
        let claims = json!({"groups": vec!["x"; MAX_VALUES - 2]});
        let scope = Scope::new("claims", &claims);
        let expression = parse("claims.groups.all(group, group in claims.groups)").unwrap();
        assert_eq!(expression.truth(&scope), Ok(true));
        let expression = parse("claims.groups.map(group, group + 'y').size() == 2046").unwrap();
        assert_eq!(expression.truth(&scope), Ok(true));
    }
}
