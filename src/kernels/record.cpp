// For tests alone, the only programs that it is linked into: which operations libtorch runs.

#include "border.h"

#include <ATen/record_function.h>

namespace {

thread_local at::CallbackHandle callback = at::INVALID_CALLBACK_HANDLE;
// One line an operation: its name, and the element count of its outputs.
thread_local std::string operations;

std::unique_ptr<at::ObserverContext> started(const at::RecordFunction&) {
    return nullptr;
}

void ended(const at::RecordFunction& operation, at::ObserverContext*) {
    int64_t count = 0;
    for (const c10::IValue& output : operation.outputs()) {
        if (output.isTensor() && output.toTensor().defined()) {
            count += output.toTensor().numel();
        }
    }
    operations += std::string(operation.name()) + ' ' + std::to_string(count) + '\n';
}

}  // namespace

extern "C" {

// Records the operations of this thread from now on.
char* prior_embed_record() {
    return prior_embed::guarded([&] {
        operations.clear();
        at::RecordFunctionCallback observer(started, ended);
        observer.needsOutputs(true).scopes({at::RecordScope::FUNCTION});
        callback = at::addThreadLocalCallback(observer);
    });
}

// Ends it, and gives what was recorded; valid until this thread's next call.
char* prior_embed_recorded(char** out) {
    return prior_embed::guarded([&] {
        at::removeCallback(callback);
        callback = at::INVALID_CALLBACK_HANDLE;
        *out = prior_embed::kept(operations.c_str());
    });
}

}  // extern "C"
