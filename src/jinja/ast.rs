//! The syntax tree of a template: statements and expressions, as jinja2's grammar has them. Data only.

use std::sync::Arc;

/// An identifier or text, shared between the tree and the scopes in which it is bound.
pub type SharedName = Arc<str>;

/// An expression.
#[derive(Debug)]
pub enum Expr {
    Text(SharedName),
    Int(i128),
    /// The digits of an integer beyond 128 bits.
    BigInt(SharedName),
    Float(f64),
    Bool(bool),
    None,
    Name(SharedName),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attr(Box<Expr>, SharedName),
    Item(Box<Expr>, Box<Expr>),
    /// `value[start:stop:step]`
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, ArgumentExprs),
    /// Value, filter and arguments. A filter block has no value: its text is the value.
    Filter(Option<Box<Expr>>, SharedName, ArgumentExprs),
    Test(Box<Expr>, SharedName, ArgumentExprs),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    Binary(BinaryOperator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(CompareOperator, Expr)>),
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
pub struct ArgumentExprs {
    pub positional: Vec<Expr>,
    pub named: Vec<(SharedName, Expr)>,
    /// `*list`
    pub list_splat: Option<Box<Expr>>,
    /// `**dict`
    pub dict_splat: Option<Box<Expr>>,
}

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryOperator {
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
pub enum CompareOperator {
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
pub enum AssignTarget {
    Name(SharedName),
    Tuple(Vec<AssignTarget>),
    /// `namespace.attribute`
    Attribute(SharedName, SharedName),
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
    For(Arc<ForLoop>),
    Set(AssignTarget, Expr),
    SetBlock(AssignTarget, Option<Expr>, Vec<Stmt>),
    With(Vec<(AssignTarget, Expr)>, Vec<Stmt>),
    Macro(Arc<MacroDefinition>),
    /// `{% call %}`: the call, and its block as the macro `caller`.
    CallBlock(Expr, Arc<MacroDefinition>),
    FilterBlock(Expr, Vec<Stmt>),
    Generation(Vec<Stmt>),
    Break,
    Continue,
}

/// A `for` loop: `otherwise` runs where there is no item.
#[derive(Debug)]
pub struct ForLoop {
    pub target: AssignTarget,
    pub over: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

/// The definition of a macro, or the block of a `call`.
#[derive(Debug)]
pub struct MacroDefinition {
    pub name: SharedName,
    pub parameters: Vec<(SharedName, Option<Expr>)>,
    pub body: Vec<Stmt>,
    /// Whether the body reads `caller`, `varargs` and `kwargs` without having parameters of these names.
    pub uses_caller: bool,
    pub uses_varargs: bool,
    pub uses_kwargs: bool,
}
