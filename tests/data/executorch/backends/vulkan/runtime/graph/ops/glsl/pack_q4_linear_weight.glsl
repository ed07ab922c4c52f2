#version 450 core

layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;
layout(std430, set = 0, binding = 0) writeonly restrict buffer Blocks { uint t_blocks[]; };
layout(std430, set = 0, binding = 1) readonly restrict buffer Weight { uint t_weight[]; };
layout(push_constant) uniform Push {
  ivec4 packed_sizes;
  ivec2 table;  // columns, rows
};

uint code_of(const int row, const int column) {
  return row < table.y ? (t_weight[row * (table.x >> 3) + (column >> 3)] >> ((column & 7) * 4)) & 0xFu : 8u;
}

void main() {
  const int k8 = int(gl_GlobalInvocationID.x);
  const int n8 = int(gl_GlobalInvocationID.y);
  if (k8 >= table.x / 8 || n8 * 8 >= table.y) {
    return;
  }
  for (int half_block = 0; half_block < 2; ++half_block) {
    for (int low = 0; low < 4; ++low) {
      uint word = 0u;
      for (int column = 0; column < 4; ++column) {
        const int k = k8 * 8 + half_block * 4 + column;
        word |= (code_of(n8 * 8 + low, k) | code_of(n8 * 8 + low + 4, k) << 4) << (column * 8);
      }
      t_blocks[(n8 * (table.x >> 2) + k8 * 2 + half_block) * 4 + low] = word;
    }
  }
}
