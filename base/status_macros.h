// Early returns on absl::Status.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define AS_CONCAT_INNER_(a, b) a##b
#define AS_CONCAT_(a, b) AS_CONCAT_INNER_(a, b)

// Returns the status of `expr` if it is not OK.
#define AS_RETURN_IF_ERROR(expr)                                               \
  do {                                                                         \
    if (absl::Status as_status_ = (expr); !as_status_.ok()) return as_status_; \
  } while (false)

// lhs = value of `expr` (a StatusOr), or returns its status.
#define AS_ASSIGN_OR_RETURN(lhs, expr) AS_ASSIGN_OR_RETURN_(AS_CONCAT_(as_statusor_, __LINE__), lhs, expr)
#define AS_ASSIGN_OR_RETURN_(tmp, lhs, expr)     \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)
