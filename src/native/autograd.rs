//! Autograd nodes whose backward is a Rust closure, and backward passes from given gradients.

use super::{Result, check, pointers};
use crate::error;
use std::ffi::{CString, c_char, c_int, c_void};
use tch::Tensor;
use torch_sys::C_tensor;

type BackwardFn = extern "C" fn(*mut c_void, *mut *mut C_tensor, c_int, *mut *mut C_tensor, c_int) -> c_int;

type DropFn = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn ft_set_error(message: *const c_char);
    fn ft_attach(
        ins: *mut *mut C_tensor,
        n_ins: c_int,
        outs: *mut *mut C_tensor,
        n_outs: c_int,
        run: BackwardFn,
        drop: DropFn,
        ctx: *mut c_void,
    ) -> c_int;
    fn ft_backward(outs: *mut *mut C_tensor, grads: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_add_gradient(leaf: *mut C_tensor, g: *mut C_tensor) -> c_int;
    fn ft_drop_gradients(p: *mut *mut C_tensor, n: c_int) -> c_int;
    fn ft_learns(t: *mut C_tensor) -> c_int;
}

type BackwardClosure = Box<dyn FnMut(&[Option<Tensor>]) -> Vec<Option<Tensor>>>;

/// Adds `outputs` to the graph as results of `inputs`. They must be new tensors computed under `no_grad`, not views
/// of inputs. `backward` receives the outputs' gradients (`None` if the loss does not depend on one) and returns one
/// gradient per input (`None` if it needs none).
///
/// The closure runs without gradient tracking, on the autograd engine's thread for the device. It must not capture an
/// output: the graph would then own itself and never be freed. If an operation of libtorch fails in it, for lack of
/// memory for example, the backward pass fails with that operation's message.
pub fn attach_backward(
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    backward: impl FnMut(&[Option<Tensor>]) -> Vec<Option<Tensor>> + 'static,
) {
    extern "C" fn run(
        ctx: *mut c_void,
        grads: *mut *mut C_tensor,
        n: c_int,
        out: *mut *mut C_tensor,
        n_out: c_int,
    ) -> c_int {
        // SAFETY: ctx is the Box<Backward> leaked below; grads are owned tensors or null; out has n_out slots.
        let work = || unsafe {
            let closure = &mut *(ctx as *mut BackwardClosure);
            let grads: Vec<Option<Tensor>> =
                (0..n as usize).map(|i| *grads.add(i)).map(|p| (!p.is_null()).then(|| Tensor::from_ptr(p))).collect();
            let _no_grad = tch::no_grad_guard();
            let results = closure(&grads);
            assert_eq!(results.len(), n_out as usize, "one gradient per input");
            for (i, r) in results.into_iter().enumerate() {
                if let Some(t) = r {
                    *out.add(i) = std::mem::ManuallyDrop::new(t).as_mut_ptr();
                }
            }
        };
        match error::catch_in_callback(work) {
            Ok(()) => 0,
            Err(cause) => {
                let cause = CString::new(cause.replace('\0', " ")).unwrap_or_default();
                // SAFETY: a NUL-terminated string, which the shim copies.
                unsafe { ft_set_error(cause.as_ptr()) };
                -1
            }
        }
    }
    extern "C" fn drop_ctx(ctx: *mut c_void) {
        // SAFETY: called once with the pointer leaked below.
        drop(unsafe { Box::from_raw(ctx as *mut BackwardClosure) });
    }
    let closure: BackwardClosure = Box::new(backward);
    let ctx = Box::into_raw(Box::new(closure)) as *mut c_void;
    let (mut ins, mut outs) = (pointers(inputs), pointers(outputs));
    // SAFETY: the arrays hold live tensors for the duration of the call; ctx is owned by the node from here on.
    let code = unsafe {
        ft_attach(ins.as_mut_ptr(), ins.len() as c_int, outs.as_mut_ptr(), outs.len() as c_int, run, drop_ctx, ctx)
    };
    check(code).expect("outputs of a custom operation are fresh tensors");
}

/// Runs the backward from `outputs`, given their gradients `grads`. Adds the gradients of the leaves to their `.grad`.
pub fn backward(outputs: &[&Tensor], grads: &[&Tensor]) -> Result<()> {
    let (mut o, mut g) = (pointers(outputs), pointers(grads));
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_backward(o.as_mut_ptr(), g.as_mut_ptr(), o.len() as c_int) })
}

/// Adds `g` to the gradient of a leaf. If it has none, `g` itself becomes the gradient: nothing is copied.
pub fn add_gradient(leaf: &Tensor, g: Tensor) {
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_add_gradient(leaf.as_ptr() as *mut C_tensor, g.as_ptr() as *mut C_tensor) })
        .expect("a leaf takes its gradient");
}

/// Removes the parameters' gradients, so that the next backward stores new ones instead of adding to zeros.
pub fn drop_gradients<'t>(parameters: impl Iterator<Item = &'t Tensor>) {
    let mut p: Vec<*mut C_tensor> = parameters.map(|t| t.as_ptr() as *mut C_tensor).collect();
    // SAFETY: live tensors for the duration of the call.
    check(unsafe { ft_drop_gradients(p.as_mut_ptr(), p.len() as c_int) }).expect("leaves have room for a gradient");
}

/// Returns true if the tensor, or the leaf that it is a recorded view of, requires a gradient. A view itself goes on requiring
/// one when its leaf no longer does.
pub fn learns(t: &Tensor) -> bool {
    // SAFETY: a live tensor for the duration of the call.
    unsafe { ft_learns(t.as_ptr() as *mut C_tensor) == 1 }
}

/// Returns true if operations on this thread are being recorded for a backward pass.
pub fn grad_enabled() -> bool {
    // SAFETY: sets and restores a thread-local flag; the call returns the previous value.
    unsafe {
        let before = torch_sys::at_grad_set_enabled(0);
        torch_sys::at_grad_set_enabled(before);
        before != 0
    }
}
