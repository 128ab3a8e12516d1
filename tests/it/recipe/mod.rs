//! Tests of src/recipe.

mod laws;
mod reading;
