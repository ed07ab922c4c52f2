#version 450 core
#extension GL_EXT_shader_16bit_storage : require
// The plainest flat-layout embedding: one invocation writes 32 columns of one row. WRONG_RANK plants a bug: indices of
// rank 2 and more are read from the first row of their texture.
layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;
#ifdef TEXTURE
layout(set = 0, binding = 0, rgba32f) writeonly uniform image3D t_out;
layout(set = 0, binding = 1) uniform isampler3D t_indices;
#else
layout(std430, set = 0, binding = 0) buffer Out { float t_out[]; };
layout(std430, set = 0, binding = 1) readonly buffer Indices { int t_indices[]; };
#endif
layout(std430, set = 0, binding = 2) readonly buffer Weight { uint t_weight[]; };
layout(std430, set = 0, binding = 3) readonly buffer Scales { SCALE t_scales[]; };
layout(set = 0, binding = 4) uniform Sizes { ivec4 out_sizes; };
layout(push_constant) uniform Push { int group_size; int is_linear_weight; };

float element(const int row, const int column) {
  const uint byte_of = t_weight[(row * out_sizes.x + column) >> 3] >> (((column >> 1) & 3) << 3);
  const uint code = (column & 1) != 0 ? byte_of & 15u : (byte_of >> 4) & 15u;
  precise const float product =
      float(int(code) - 8) * float(t_scales[(row * out_sizes.x + column) / group_size]);
  return product;
}

void main() {
  const ivec3 at = ivec3(gl_GlobalInvocationID);
  if (at.x >= out_sizes.x >> 5 || at.y >= out_sizes.y || at.z >= out_sizes.z * out_sizes.w) {
    return;
  }
  const int place = at.z * out_sizes.y + at.y;
#ifdef TEXTURE
  const int row = texelFetch(t_indices, ivec3(place >> 2, 0, 0), 0)[place & 3];
#else
  const int row = t_indices[place];
#endif
  for (int column = at.x << 5; column < (at.x + 1) << 5; column += 4) {
    const vec4 four =
        vec4(element(row, column), element(row, column + 1), element(row, column + 2), element(row, column + 3));
#ifdef TEXTURE
    imageStore(t_out, ivec3(column >> 2, at.y, at.z), four);
#else
    for (int i = 0; i < 4; ++i) t_out[place * out_sizes.x + column + i] = four[i];
#endif
  }
}
