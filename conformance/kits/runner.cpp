// A runner for kits on ExecuTorch's Module: runner MODEL OUT INPUT...  (docs/runtime.md, "A runner")
//
// An INPUT is FILE:DTYPE:SIZES, such as input_0.bin:int64:2x3; the word "then" begins the inputs of the next call.
// Every output of every call goes to OUT/output_N.bin, counted through, with DTYPE:SIZES in OUT/output_N.txt.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

using namespace executorch::extension;
using executorch::aten::ScalarType;
using executorch::runtime::EValue;

struct Kind { const char* name; ScalarType type; };
constexpr Kind kKinds[] = {
    {"float32", ScalarType::Float}, {"float16", ScalarType::Half}, {"bfloat16", ScalarType::BFloat16},
    {"float64", ScalarType::Double}, {"int64", ScalarType::Long}, {"int32", ScalarType::Int},
    {"int16", ScalarType::Short}, {"int8", ScalarType::Char}, {"uint8", ScalarType::Byte}};

int fail(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 3) return fail("usage: runner MODEL OUT [FILE:DTYPE:SIZES | then]...");
  Module module(argv[1]);
  int written = 0;
  for (int at = 3; at <= argc;) {
    std::vector<std::vector<char>> bytes;
    std::vector<TensorPtr> tensors;
    for (; at < argc && std::string(argv[at]) != "then"; ++at) {
      const std::string word = argv[at];
      const auto sizes_at = word.rfind(':'), dtype_at = word.rfind(':', sizes_at - 1);
      const Kind* kind = nullptr;
      for (const Kind& one : kKinds)
        if (word.compare(dtype_at + 1, sizes_at - dtype_at - 1, one.name) == 0) kind = &one;
      if (!kind || dtype_at == std::string::npos) return fail(word + ": not FILE:DTYPE:SIZES");
      std::vector<executorch::aten::SizesType> sizes;
      std::istringstream text(word.substr(sizes_at + 1));
      for (std::string size; std::getline(text, size, 'x');) sizes.push_back(std::stoi(size));
      std::ifstream file(word.substr(0, dtype_at), std::ios::binary);
      bytes.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      tensors.push_back(from_blob(bytes.back().data(), sizes, kind->type));
      if (!file || tensors.back()->nbytes() != bytes.back().size()) return fail(word + ": cannot be read, or another size");
    }
    ++at;  // past "then"
    const auto result = module.forward(std::vector<EValue>(tensors.begin(), tensors.end()));
    if (!result.ok()) return fail("forward: error " + std::to_string(static_cast<int>(result.error())));
    for (const EValue& value : *result) {
      const auto& tensor = value.toTensor();
      const std::string path = std::string(argv[2]) + "/output_" + std::to_string(written++);
      std::ofstream(path + ".bin", std::ios::binary).write(tensor.const_data_ptr<char>(), tensor.nbytes());
      std::ofstream told(path + ".txt");
      for (const Kind& one : kKinds)
        if (one.type == tensor.scalar_type()) told << one.name << ':';
      for (ssize_t d = 0; d < tensor.dim(); ++d) told << (d ? "x" : "") << tensor.size(d);
    }
  }
  return 0;
}
