//! The JavaScript boundary: exported functions over handles, and errors with codes. One WebAssembly instance is one
//! engine. TypeScript starts an instance for each model, and drops it to free all its memory.

#[cfg(not(feature = "gpu"))]
#[path = "cpu/mod.rs"]
mod backend;
#[cfg(feature = "gpu")]
#[path = "gpu/mod.rs"]
mod backend;
mod error;
mod handles;
mod ops;

use std::panic;
use std::sync::Mutex;

use wasm_bindgen::prelude::*;

/// The first panic of any thread. Only the first matters: losing a thread makes the thread that waits for it panic too.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Stores a panic's message for [`last_panic`], because the trap that follows reaches JavaScript without it.
#[wasm_bindgen(start)]
pub fn start() {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = PANIC.try_lock() {
            message.get_or_insert_with(|| info.to_string());
        }
    }));
}

/// The message of the panic that ended this instance.
#[wasm_bindgen]
pub fn last_panic() -> Option<String> {
    PANIC.try_lock().ok().and_then(|message| message.clone())
}
