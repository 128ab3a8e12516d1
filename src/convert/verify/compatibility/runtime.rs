//! The programs that verdicts are given for, and what each of them reads.

use serde::Serialize;

/// A program that runs exported models or adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Runtime {
    /// PEFT, with transformers.
    #[serde(rename = "peft")]
    Peft,
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// Text Generation Inference.
    #[serde(rename = "tgi")]
    Tgi,
    /// SGLang.
    #[serde(rename = "sglang")]
    SgLang,
    /// TensorRT-LLM, with its PyTorch backend.
    #[serde(rename = "tensorrt-llm")]
    TensorRtLlm,
    /// llama.cpp and the programs that use it.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// mlx-lm.
    #[serde(rename = "mlx")]
    Mlx,
    /// ONNX Runtime.
    #[serde(rename = "onnx-runtime")]
    OnnxRuntime,
}

/// The format of `ft export` that a program reads models in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeFormat {
    /// A Hugging Face directory.
    Hf,
    /// A GGUF file.
    Gguf,
    /// A folder of mlx-lm.
    Mlx,
    /// A folder of ONNX Runtime.
    Onnx,
}

impl Runtime {
    /// All of them, in the order in which answers are given.
    const ALL: [Self; 8] = [
        Self::Peft,
        Self::Vllm,
        Self::Tgi,
        Self::SgLang,
        Self::TensorRtLlm,
        Self::LlamaCpp,
        Self::Mlx,
        Self::OnnxRuntime,
    ];

    /// Returns the program that has this name in texts.
    pub(super) fn named_title(title: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runtime| runtime.title() == title)
    }

    /// Returns true for servers that read Hugging Face directories.
    pub fn serves_directories(self) -> bool {
        matches!(self, Self::Vllm | Self::Tgi | Self::SgLang | Self::TensorRtLlm)
    }

    /// Returns the program's name in texts.
    pub fn title(self) -> &'static str {
        match self {
            Self::Peft => "PEFT",
            Self::Vllm => "vLLM",
            Self::Tgi => "TGI",
            Self::SgLang => "SGLang",
            Self::TensorRtLlm => "TensorRT-LLM",
            Self::LlamaCpp => "llama.cpp",
            Self::Mlx => "MLX",
            Self::OnnxRuntime => "ONNX Runtime",
        }
    }

    /// Returns its name after `--for`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Vllm => "vllm",
            Self::Tgi => "tgi",
            Self::SgLang => "sglang",
            Self::TensorRtLlm => "tensorrt-llm",
            Self::LlamaCpp => "llama.cpp",
            Self::Mlx => "mlx",
            Self::OnnxRuntime => "onnx-runtime",
        }
    }

    /// Returns the format that it reads models in.
    pub fn format(self) -> RuntimeFormat {
        match self {
            Self::Peft | Self::Vllm | Self::Tgi | Self::SgLang | Self::TensorRtLlm => RuntimeFormat::Hf,
            Self::LlamaCpp => RuntimeFormat::Gguf,
            Self::Mlx => RuntimeFormat::Mlx,
            Self::OnnxRuntime => RuntimeFormat::Onnx,
        }
    }
}
