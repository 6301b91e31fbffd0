#include "text/tool_call_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "text/literal_scanner.h"
#include "text/tool_event_sink.h"

namespace agentserve::text {
namespace {

constexpr std::string_view kPythonTag = "<|python_tag|>";
constexpr std::array<std::string_view, 2> kEndMarks = {"<|eom_id|>", "<|eot_id|>"};

// Text that may become a call is held back up to here, then it is content. Only arguments written before the name can
// be long: 256 KiB is far more than a model writes in one call and little beside the KV of the tokens.
constexpr size_t kMaxHeld = 256 << 10;
// Values of "type" and "id", and names of keyword arguments.
constexpr size_t kMaxWord = 256;

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
bool IsNameChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
}

}  // namespace

// A byte-driven machine. `held_` is all text since the point from which things may be (or were, since the last sure
// event) syntax of a call; a byte that fits nowhere turns it into content and is looked at afresh, so work is linear
// and nothing is lost.
class ToolCallParser::Impl {
 public:
  explicit Impl(ToolParserOptions options)
      : options_(std::move(options)), sink_(options_.id_seed, !options_.parallel_calls) {}

  std::vector<ToolEvent> Feed(std::string_view text) {
    while (!text.empty()) {
      if (state_ == State::kContent) {
        // Most text is content: pass over it in one go.
        const size_t n = options_.tool_names.empty() ? text.size() : std::min(text.find_first_of("<{["), text.size());
        Content(text.substr(0, n));
        text.remove_prefix(n);
        if (text.empty()) break;
      }
      Byte(text.front());
      text.remove_prefix(1);
    }
    return sink_.Take();
  }

  std::vector<ToolEvent> Finish() {
    if (sink_.call_open()) {
      EndCall(false);  // what is held is a broken token of its arguments
    } else if (held_.find_first_not_of(" \n\t\r,;]}") != std::string::npos) {
      Content(held_);  // else only the end of the syntax of a call
    }
    held_.clear();
    state_ = State::kContent;
    return sink_.Take();
  }

  uint32_t calls() const { return sink_.calls(); }
  uint32_t complete_calls() const { return sink_.complete_calls(); }

 private:
  enum class State {
    kContent,
    kMark,      // inside "<|python_tag|>", or behind a call inside an end mark
    kAfterTag,  // behind the tag
    kObject,    // expects a key or '}'
    kKey,       // inside a key
    kColon,
    kMember,       // expects a value
    kName,         // inside the name
    kWord,         // inside the value of "type" or "id"
    kNull,         // inside "null" as arguments
    kArguments,    // inside the arguments object
    kSeparator,    // behind a member
    kList,         // behind '[' or, in a list of calls, behind ','
    kFunction,     // name of a pythonic call
    kKeyword,      // expects a keyword or ')'
    kKeywordName,  // inside a keyword
    kKeywordEquals,
    kKeywordValue,
    kKeywordEnd,  // behind a value: ',' or ')'
    kAfterCall,
  };

  void Byte(char c) {
    if (state_ == State::kContent) {
      Begin(c);
      return;
    }
    held_.push_back(c);
    progress_ = false;
    if (held_.size() <= kMaxHeld && Step(c)) {
      if (progress_) held_.clear();
      return;
    }
    held_.pop_back();
    Reject();
    if (c == '<' || c == '{' || c == '[') {
      Begin(c);
    } else {
      Content(std::string_view(&c, 1));
    }
  }

  // `c` at a place where content was: the start of something, or content.
  void Begin(char c) {
    held_.assign(1, c);
    list_ = false;
    if (c == '<') {
      StartMark();
    } else if (c == '{') {
      StartObject();
    } else {
      list_ = true;
      state_ = State::kList;
    }
  }

  // What is held is content after all.
  void Reject() {
    if (sink_.call_open()) EndCall(false);
    Content(held_);
    held_.clear();
    state_ = State::kContent;
  }

  // One byte, already in held_. False: it fits nowhere.
  bool Step(char c) {
    switch (state_) {
      case State::kMark:
        return StepMark(c);
      case State::kAfterTag:
      case State::kAfterCall:
        return StepOutside(c);
      case State::kObject:
      case State::kKey:
      case State::kColon:
      case State::kMember:
      case State::kName:
      case State::kWord:
      case State::kNull:
      case State::kSeparator:
        return StepObject(c);
      case State::kArguments:
        return StepArguments(c);
      case State::kList:
      case State::kFunction:
        return StepList(c);
      case State::kKeyword:
      case State::kKeywordName:
      case State::kKeywordEquals:
      case State::kKeywordValue:
      case State::kKeywordEnd:
        return StepKeyword(c);
      case State::kContent:
        break;
    }
    return false;
  }

  // --- marks, and what stands between calls ---

  void StartMark() {
    behind_call_ = state_ == State::kAfterCall;
    mark_start_ = held_.size() - 1;
    state_ = State::kMark;
  }

  bool StepMark(char) {
    const std::string_view mark = std::string_view(held_).substr(mark_start_);
    if (kPythonTag.starts_with(mark)) {
      if (mark.size() == kPythonTag.size()) state_ = State::kAfterTag;
      return true;
    }
    if (!behind_call_) return false;
    for (const std::string_view end : kEndMarks) {
      if (!end.starts_with(mark)) continue;
      if (mark.size() == end.size()) {
        held_.resize(mark_start_);
        state_ = State::kAfterCall;
      }
      return true;
    }
    return false;
  }

  bool StepOutside(char c) {
    if (IsSpace(c)) return true;
    if (c == '{') {
      StartObject();
      return true;
    }
    if (state_ == State::kAfterCall) {
      if (list_) {
        if (c == ',') state_ = State::kList;
        return c == ',' || (c == ']' && EndList());
      }
      if (c == ';' || c == ',') return true;
      if (c == '<') {
        StartMark();
        return true;
      }
    }
    if (c != '[') return false;
    list_ = true;
    state_ = State::kList;
    return true;
  }

  bool StepList(char c) {
    if (state_ == State::kList) {
      if (IsSpace(c)) return true;
      if (c == '{') {
        StartObject();
        return true;
      }
      if (c == ']' && behind_comma()) return EndList();
      word_.clear();
      state_ = State::kFunction;
    }
    if (c == '(') return IsTool(word_) && StartPythonic();
    if (!IsNameChar(c)) return false;
    word_.push_back(c);
    return BeginsTool(word_);
  }

  // Of a list that ends in ",]": held_ then begins with the comma that followed the last call.
  bool behind_comma() const { return held_[held_.find_first_not_of(" \n\t\r")] == ','; }

  bool EndList() {
    list_ = false;
    progress_ = true;
    state_ = State::kAfterCall;
    return true;
  }

  // --- {"name": .., "parameters": {..}} ---

  void StartObject() {
    name_.clear();
    have_name_ = have_arguments_ = nested_ = false;
    early_arguments_.clear();
    state_ = State::kObject;
  }

  bool StepObject(char c) {
    if (state_ == State::kKey || state_ == State::kName || state_ == State::kWord) return StepQuoted(c);
    if (state_ == State::kNull) {
      word_.push_back(c);
      if (!std::string_view("null").starts_with(word_)) return false;
      if (word_.size() == 4) GotArguments("{}");
      return true;
    }
    if (IsSpace(c)) return true;
    switch (state_) {
      case State::kObject:
        if (c != '"') return false;
        word_.clear();
        state_ = State::kKey;
        return true;
      case State::kColon:
        if (c != ':') return false;
        state_ = State::kMember;
        return true;
      case State::kMember:
        return StartMember(c);
      default:  // kSeparator
        if (c == ',') {
          state_ = State::kObject;
          return true;
        }
        return c == '}' && EndObject();
    }
  }

  // Inside a key, a name or another short string. Escapes are for none of them.
  bool StepQuoted(char c) {
    if (c == '\\' || static_cast<uint8_t>(c) < 0x20) return false;
    if (c != '"') {
      word_.push_back(c);
      return state_ == State::kName ? BeginsTool(word_) : word_.size() <= kMaxWord;
    }
    if (state_ == State::kKey) {
      state_ = State::kColon;
      return word_ == "name" || word_ == "function" || word_ == "parameters" || word_ == "arguments" ||
             word_ == "type" || word_ == "id";
    }
    const bool is_name = state_ == State::kName;
    state_ = State::kSeparator;
    if (!is_name) return true;
    if (!IsTool(word_)) return false;
    name_ = word_;
    have_name_ = true;
    if (have_arguments_) {
      StartCall();
      Arguments(early_arguments_);
      EndCall(true);
    }
    return true;
  }

  bool StartMember(char c) {
    if (word_ == "type" || word_ == "id") {
      state_ = State::kWord;
      word_.clear();
      return c == '"';
    }
    if (word_ == "name" || word_ == "function") {
      if (have_name_) return false;
      if (c == '{' && word_ == "function" && !nested_ && !have_arguments_) {
        nested_ = true;
        state_ = State::kObject;
        return true;
      }
      state_ = State::kName;
      word_.clear();
      return c == '"';
    }
    if (have_arguments_) return false;
    if (c == 'n') {
      word_ = "n";
      state_ = State::kNull;
      return true;
    }
    if (c != '{') return false;
    scanner_.Reset();
    state_ = State::kArguments;
    if (have_name_) StartCall();
    return StepArguments(c);
  }

  bool StepArguments(char c) {
    std::string out;
    const LiteralScanner::Step step = scanner_.Feed(c, &out);
    if (step == LiteralScanner::Step::kBad) return false;
    if (sink_.call_open()) {
      Arguments(out);
    } else {
      early_arguments_ += out;
    }
    if (step == LiteralScanner::Step::kDone) {
      have_arguments_ = true;
      if (sink_.call_open()) EndCall(true);
      state_ = State::kSeparator;
    }
    return true;
  }

  // Arguments known as a whole.
  void GotArguments(std::string_view json) {
    have_arguments_ = true;
    state_ = State::kSeparator;
    if (!have_name_) {
      early_arguments_ = json;
      return;
    }
    StartCall();
    Arguments(json);
    EndCall(true);
  }

  bool EndObject() {
    if (nested_) {
      nested_ = false;
      return true;
    }
    if (!have_name_) return false;
    if (!have_arguments_) GotArguments("{}");
    progress_ = true;
    state_ = State::kAfterCall;
    return true;
  }

  // --- [f(a=1), g()] ---

  bool StartPythonic() {
    name_ = word_;
    StartCall();
    Arguments("{");
    first_keyword_ = true;
    state_ = State::kKeyword;
    return true;
  }

  bool StepKeyword(char c) {
    if (state_ == State::kKeywordValue) {
      if (!value_begun_ && IsSpace(c)) return true;
      value_begun_ = true;
      std::string out;
      const LiteralScanner::Step step = scanner_.Feed(c, &out);
      if (step == LiteralScanner::Step::kBad) return false;
      Arguments(out);
      if (step != LiteralScanner::Step::kMore) state_ = State::kKeywordEnd;
      if (step != LiteralScanner::Step::kDoneBefore) return true;
    }
    if (state_ == State::kKeywordName && IsNameChar(c)) {
      word_.push_back(c);
      return word_.size() <= kMaxWord;
    }
    if (IsSpace(c)) {
      if (state_ == State::kKeywordName) state_ = State::kKeywordEquals;
      return true;
    }
    switch (state_) {
      case State::kKeyword:
        if (c == ')') return EndPythonic();
        if (!IsNameChar(c)) return false;
        word_.assign(1, c);
        state_ = State::kKeywordName;
        return true;
      case State::kKeywordName:
      case State::kKeywordEquals:
        if (c != '=') return false;
        Arguments(first_keyword_ ? "\"" : ", \"");
        Arguments(word_);
        Arguments("\": ");
        first_keyword_ = false;
        value_begun_ = false;
        scanner_.Reset();
        state_ = State::kKeywordValue;
        return true;
      default:  // kKeywordEnd
        if (c == ')') return EndPythonic();
        if (c != ',') return false;
        state_ = State::kKeyword;
        return true;
    }
  }

  bool EndPythonic() {
    Arguments("}");
    EndCall(true);
    state_ = State::kAfterCall;
    return true;
  }

  // --- names and events ---

  bool IsTool(std::string_view name) const {
    return std::any_of(options_.tool_names.begin(), options_.tool_names.end(),
                       [&](const auto& t) { return t == name; });
  }
  bool BeginsTool(std::string_view prefix) const {
    return std::any_of(options_.tool_names.begin(), options_.tool_names.end(),
                       [&](const auto& t) { return t.starts_with(prefix); });
  }

  void Content(std::string_view text) { sink_.Content(text); }
  void StartCall() { sink_.StartCall(name_); }
  void EndCall(bool complete) { sink_.EndCall(complete); }
  void Arguments(std::string_view json) {
    progress_ |= !json.empty();
    sink_.Arguments(json);
  }

  ToolParserOptions options_;
  ToolEventSink sink_;
  State state_ = State::kContent;
  std::string held_;
  bool list_ = false;         // inside [ .. ]
  bool behind_call_ = false;  // where the mark being read began
  size_t mark_start_ = 0;     // in held_
  std::string word_;          // key, name or short value being read
  std::string name_;
  bool have_name_ = false;
  bool have_arguments_ = false;
  bool nested_ = false;          // inside the value of "function"
  std::string early_arguments_;  // read before the name
  bool progress_ = false;        // this byte made sure that what is held is syntax of a call
  bool first_keyword_ = true;
  bool value_begun_ = false;
  LiteralScanner scanner_;
};

ToolCallParser::ToolCallParser(ToolParserOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
ToolCallParser::~ToolCallParser() = default;
ToolCallParser::ToolCallParser(ToolCallParser&&) noexcept = default;
ToolCallParser& ToolCallParser::operator=(ToolCallParser&&) noexcept = default;
std::vector<ToolEvent> ToolCallParser::Feed(std::string_view text) { return impl_->Feed(text); }
std::vector<ToolEvent> ToolCallParser::Finish() { return impl_->Finish(); }
uint32_t ToolCallParser::calls() const { return impl_->calls(); }
uint32_t ToolCallParser::complete_calls() const { return impl_->complete_calls(); }

}  // namespace agentserve::text
