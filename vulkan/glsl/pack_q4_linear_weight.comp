#version 450 core

// Linear-weight bytes to the block layout (docs/contract.md 1): what et_vk's runtime does once when it loads a table.
//
// Defines: TEXTURE  t_packed is an iimage2D, texel (k4, n8), else a buffer.
//
// Bindings and push constants are those of ExecuTorch's runtime. An invocation (k8, n8) turns 8 columns of 8 rows, one
// word each, into two blocks. Blocks beyond the grid in y are reached by striding.

layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;

#ifdef TEXTURE
layout(set = 0, binding = 0, rgba32i) writeonly restrict uniform highp iimage2D t_packed;
#else
layout(std430, set = 0, binding = 0) writeonly restrict buffer Packed { ivec4 t_packed[]; };
#endif
layout(std430, set = 0, binding = 1) readonly restrict buffer Weight { uint t_weight[]; };
layout(push_constant) uniform PushConstants {
  ivec4 packed_sizes;  // of the packed tensor, W H C N; not needed here
  ivec2 orig_sizes;    // embed_dim, vocab_size
};

const uint PADDING = 0x88888888u;  // code 8, q = 0: what rows past the last one hold

// Four 4-bit codes side by side -> the low nibbles of four bytes.
uvec4 spread(const uvec4 codes) {
  const uvec4 pairs = (codes & 0xFFu) | ((codes & 0xFF00u) << 8);
  return (pairs & 0x000F000Fu) | ((pairs & 0x00F000F0u) << 4);
}

void write_block(const int k4, const int n8, const uvec4 low_rows, const uvec4 high_rows) {
  const ivec4 block = ivec4(spread(low_rows) | (spread(high_rows) << 4));
#ifdef TEXTURE
  imageStore(t_packed, ivec2(k4, n8), block);
#else
  t_packed[n8 * (orig_sizes.x >> 2) + k4] = block;
#endif
}

uint word_of(const int row, const int k8) {
  return row < orig_sizes.y ? t_weight[row * (orig_sizes.x >> 3) + k8] : PADDING;
}

uvec4 four_rows(const int row, const int k8) {
  return uvec4(word_of(row, k8), word_of(row + 1, k8), word_of(row + 2, k8), word_of(row + 3, k8));
}

void main() {
  const int k8 = int(gl_GlobalInvocationID.x);
  if (k8 >= orig_sizes.x >> 3) {
    return;
  }
  const int blocks = (orig_sizes.y + 7) >> 3;
  const int reach = int(gl_NumWorkGroups.y * gl_WorkGroupSize.y);
  for (int n8 = int(gl_GlobalInvocationID.y); n8 < blocks; n8 += reach) {
    const uvec4 low_rows = four_rows(n8 << 3, k8);
    const uvec4 high_rows = four_rows((n8 << 3) + 4, k8);
    write_block(k8 << 1, n8, low_rows & 0xFFFFu, high_rows & 0xFFFFu);
    write_block((k8 << 1) + 1, n8, low_rows >> 16, high_rows >> 16);
  }
}
