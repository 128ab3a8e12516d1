//! The syntax tree of a template: statements and expressions, as jinja2's grammar has them. Data only.

use std::sync::Arc;

/// An identifier or text, shared between the tree and the scopes in which it is bound.
pub type Name = Arc<str>;

/// An expression.
#[derive(Debug)]
pub enum Expr {
    Text(Name),
    Int(i128),
    /// The digits of an integer beyond 128 bits.
    Long(Name),
    Float(f64),
    Bool(bool),
    None,
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attr(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    /// `value[start:stop:step]`
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Arguments),
    /// Value, filter and arguments. A filter block has no value: its text is the value.
    Filter(Option<Box<Expr>>, Name, Arguments),
    Test(Box<Expr>, Name, Arguments),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Compare, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    If {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
}

/// The arguments of a call, filter or test, not yet evaluated.
#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    /// `*list`
    pub list: Option<Box<Expr>>,
    /// `**dict`
    pub dict: Option<Box<Expr>>,
}

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// The left side of an assignment, or the variables of a loop.
#[derive(Debug)]
pub enum Target {
    Name(Name),
    Tuple(Vec<Target>),
    /// `namespace.attribute`
    Attribute(Name, Name),
}

/// A statement with its 1-based line.
#[derive(Debug)]
pub struct Stmt {
    pub line: usize,
    pub kind: StmtKind,
}

/// The kinds of statements. Text between tags is one too.
#[derive(Debug)]
pub enum StmtKind {
    Text(String),
    Print(Expr),
    If {
        branches: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    For(Arc<For>),
    Set(Target, Expr),
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Macro(Arc<Macro>),
    /// `{% call %}`: the call, and its block as the macro `caller`.
    CallBlock(Expr, Arc<Macro>),
    FilterBlock(Expr, Vec<Stmt>),
    Generation(Vec<Stmt>),
    Break,
    Continue,
}

/// A `for` loop: `otherwise` runs where there is no item.
#[derive(Debug)]
pub struct For {
    pub target: Target,
    pub over: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

/// The definition of a macro, or the block of a `call`.
#[derive(Debug)]
pub struct Macro {
    pub name: Name,
    pub parameters: Vec<(Name, Option<Expr>)>,
    pub body: Vec<Stmt>,
    /// Whether the body reads `caller`, `varargs` and `kwargs` without having parameters of these names.
    pub caller: bool,
    pub varargs: bool,
    pub kwargs: bool,
}
