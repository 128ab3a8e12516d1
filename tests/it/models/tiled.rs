//! MLPs that are computed for some rows at a time, and again in the backward: losses and gradients are those of all rows at once.

use super::families::{FAMILIES, sequences, step, with_lora};
use crate::support::*;
use ft::models::{LayerReplay, RouterTerms};
use ft::nn::{LayerInput, Tokens, by_tiles};
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Kind, Tensor};

#[test]
fn tiles_learn_what_the_whole_row_does_on_every_family() {
    for base in FAMILIES {
        for (what, model) in [("full", whole(&fixture(base), Kind::Float)), ("lora", with_lora(base, Kind::Float))] {
            // Statistics of routers are of all rows.
            model.set_router_terms(match model.config().experts {
                Some(_) => RouterTerms { balance: 0.3, z: 0.1 },
                None => RouterTerms::default(),
            });
            let batch = [sequences()];
            let (loss, grads) = step(&model, &batch, LayerReplay::None);
            for tile in [1, 50, 117] {
                let what = format!("{base} {what}, tiles of {tile} of 118 rows");
                model.set_mlp_tile(Some(tile));
                let (tiled_loss, tiled) = step(&model, &batch, LayerReplay::None);
                assert_number(&what, tiled_loss, loss, 1e-6);
                assert_eq!(tiled.keys().collect::<Vec<_>>(), grads.keys().collect::<Vec<_>>(), "{what}");
                println!("{what}: {:?}", assert_all_close(&tiled, &grads, 2e-5));
                let (replayed_loss, replayed) = step(&model, &batch, LayerReplay::First(1));
                assert_eq!(tiled_loss, replayed_loss, "{what}");
                tiled.iter().for_each(|(name, g)| assert_same(&format!("{what}: {name}"), &replayed[name], g));
            }
            model.set_mlp_tile(Some(118));
            let (same_loss, same) = step(&model, &batch, LayerReplay::None);
            assert_eq!(same_loss, loss, "{base}: one tile is the whole row");
            grads.iter().for_each(|(name, g)| assert_same(name, &same[name], g));
        }
    }
}

/// A policy and a reference with equal weights get equal bits, so tiles do not depend on what is trained.
#[test]
fn inference_uses_the_tiles_of_training() {
    let model = with_lora("tiny-llama", Kind::Float);
    let row = Tokens::pack(&[Sequence::random(40, 64, 1).ids], device());
    model.set_mlp_tile(Some(16));
    let learnt = RefCell::new(None);
    let batch = ClosureBatch::new(&row, |out: &ft::models::Output| {
        let logits = out.all_logits();
        learnt.replace(Some(logits.detach()));
        ft::models::Loss { sum: logits.sum(Kind::Float), metrics: Default::default() }
    });
    model.learn(&batch, 1.0, LayerReplay::None).unwrap();
    let inferred = model.infer(&row, |out| out.all_logits()).unwrap();
    assert_same("logits", &inferred, &learnt.into_inner().unwrap());
}

/// The backward draws the dropout masks of the forward, and leaves the generator where it was.
#[test]
fn dropout_repeats_in_the_backward() {
    alone("models::tiled::dropout_repeats_in_the_backward", || {
        tch::manual_seed(4);
        let x = Tensor::rand([50, 3], (Kind::Float, device())) + 1.0;
        let x = x.set_requires_grad(true);
        let calls = Rc::new(RefCell::new(0));
        let counted = calls.clone();
        let y = by_tiles(LayerInput::kept(&x), &[], Some(16), move |input, _| {
            *counted.borrow_mut() += 1;
            input.x.dropout(0.5, true)
        });
        assert_eq!((y.size(), *calls.borrow()), (vec![50, 3], 4));
        let next = Tensor::rand([4], (Kind::Float, device()));
        tch::manual_seed(4);
        let _ = Tensor::rand([50, 3], (Kind::Float, device()));
        let mut again = Vec::new();
        for (from, count) in [(0, 16), (16, 16), (32, 16), (48, 2)] {
            again.push(x.detach().narrow(0, from, count).dropout(0.5, true));
        }
        assert_same("forward", &y.detach(), &Tensor::cat(&again, 0));
        assert_same("next", &Tensor::rand([4], (Kind::Float, device())), &next);
        y.sum(Kind::Float).backward();
        assert_eq!(*calls.borrow(), 8);
        // What was dropped has no gradient, the rest is doubled.
        assert_close("gradient", &x.grad(), &(y.detach() / x.detach()), 1e-6);
        let zeros = x.grad().eq(0.0).sum(Kind::Int64).int64_value(&[]);
        assert!((40..110).contains(&zeros), "{zeros} of 150 numbers were dropped");
    });
}

/// Layers below everything that is trained record nothing, with tiles as without.
#[test]
fn nothing_is_recorded_where_nothing_is_trained() {
    let x = Tensor::rand([20, 3], (Kind::Float, device()));
    let w = Tensor::rand([3, 3], (Kind::Float, device()));
    let frozen = w.shallow_clone();
    let y = by_tiles(LayerInput::kept(&x), &[], Some(6), move |input, _| input.x.matmul(&frozen));
    assert!(!y.requires_grad());
    let leaf = w.set_requires_grad(true);
    let trained = leaf.shallow_clone();
    let y = by_tiles(LayerInput::kept(&x), &[], Some(6), move |input, _| input.x.matmul(&trained));
    assert!(y.requires_grad());
    y.sum(Kind::Float).backward();
    let expected = x.sum_dim_intlist([0i64].as_slice(), false, Kind::Float).unsqueeze(1).expand([3, 3], false);
    assert_close("weight", &leaf.grad(), &expected.contiguous(), 1e-5);
}
