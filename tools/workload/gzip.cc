#include <zlib.h>

#include <cerrno>
#include <cstring>

#include "base/strings.h"
#include "tools/workload/import.h"

namespace agentserve::workload {

// zlib reads plain files through as they are.
absl::StatusOr<std::string> ReadMaybeGzip(const std::string& file) {
  errno = 0;
  gzFile in = gzopen(file.c_str(), "rb");
  if (in == nullptr) {
    return absl::NotFoundError(base::ToAbsl(base::StrCat("cannot read ", file, ": ", strerror(errno))));
  }
  std::string text;
  char buffer[1 << 16];
  int n = 0;
  while ((n = gzread(in, buffer, sizeof buffer)) > 0) text.append(buffer, static_cast<size_t>(n));
  int code = Z_OK;
  const std::string message = gzerror(in, &code);
  gzclose(in);
  if (n < 0 || (code != Z_OK && code != Z_STREAM_END)) {
    return absl::DataLossError(base::ToAbsl(base::StrCat(file, ": ", message)));
  }
  return text;
}

}  // namespace agentserve::workload
