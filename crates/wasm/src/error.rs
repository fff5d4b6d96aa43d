//! Engine errors as JavaScript errors with a code.

use js_sys::{Error as JsError, Reflect};
use vit_msn_tensor::Error;
use wasm_bindgen::JsValue;

/// What every exported function returns.
pub type JsResult<T> = Result<T, JsValue>;

/// A JavaScript `Error` with the error's message, and its stable code as the property `code`.
pub fn to_js(error: Error) -> JsValue {
    let js = JsError::new(&error.to_string());
    // Setting a property of a new object can't fail.
    let _ = Reflect::set(
        &js,
        &JsValue::from_str("code"),
        &JsValue::from_str(error.code()),
    );
    js.into()
}
