#version 450 core

layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;
layout(std430, set = 0, binding = 0) writeonly restrict buffer Out { float t_out[]; };
layout(std430, set = 0, binding = 1) readonly restrict buffer Indices { int t_indices[]; };
layout(std430, set = 0, binding = 2) readonly restrict buffer Weight { uint t_weight[]; };
layout(std430, set = 0, binding = 3) readonly restrict buffer Scales { float t_scales[]; };
layout(set = 0, binding = 4) uniform Sizes { ivec4 out_sizes; };
layout(push_constant) uniform Push {
  int group_size;
  int is_linear_weight;
};

uint code_of(const int row, const int column) {
#ifdef BLOCKS
  const uint word = t_weight[((row >> 3) * (out_sizes.x >> 2) + (column >> 2)) * 4 + (row & 3)];
  return (word >> ((column & 3) * 8 + (row & 4))) & 0xFu;
#else
  const uint word = t_weight[row * (out_sizes.x >> 3) + (column >> 3)];
  return (word >> (((column & 6) << 2) + ((column & 1) == 0 ? 4 : 0))) & 0xFu;
#endif
}

void main() {
  const ivec3 at = ivec3(gl_GlobalInvocationID);
  const int place = at.z * out_sizes.y + at.y;
  if (at.x >= out_sizes.x / 32 || at.y >= out_sizes.y || at.z >= out_sizes.z * out_sizes.w) {
    return;
  }
  const int row = t_indices[place];
  for (int column = at.x * 32; column < at.x * 32 + 32; ++column) {
    const float scale = t_scales[row * (out_sizes.x / group_size) + column / group_size];
    t_out[place * out_sizes.x + column] = (float(code_of(row, column)) - 8.0) * scale;
  }
}
