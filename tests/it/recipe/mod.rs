//! Tests of src/recipe.

mod reading;
