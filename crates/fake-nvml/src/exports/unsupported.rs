//! Functions that tools look up and that no fake card supports.
//!
//! They are exported because tools take a missing symbol for a driver that is too old, while "not
//! supported" is an everyday answer. Only the handle, their first argument, is looked at: the C calling
//! conventions of Linux leave the others to the caller.

use crate::abi::{Code, Handle};
use crate::state::on_card;

macro_rules! not_supported {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(card: Handle) -> Code {
            on_card(card, |_, _| Err(Code::NOT_SUPPORTED))
        }
    )*};
}

not_supported! {
    nvmlDeviceGetAccountingMode
    nvmlDeviceGetApplicationsClock
    nvmlDeviceGetArchitecture
    nvmlDeviceGetAttributes_v2
    nvmlDeviceGetBAR1MemoryInfo
    nvmlDeviceGetBoardId
    nvmlDeviceGetBoardPartNumber
    nvmlDeviceGetClock
    nvmlDeviceGetComputeInstanceId
    nvmlDeviceGetCurrPcieLinkGeneration
    nvmlDeviceGetCurrPcieLinkWidth
    nvmlDeviceGetCurrentClocksEventReasons
    nvmlDeviceGetCurrentClocksThrottleReasons
    nvmlDeviceGetDecoderUtilization
    nvmlDeviceGetDefaultApplicationsClock
    nvmlDeviceGetDetailedEccErrors
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle
    nvmlDeviceGetDriverModel
    nvmlDeviceGetDriverModel_v2
    nvmlDeviceGetEccMode
    nvmlDeviceGetEncoderStats
    nvmlDeviceGetEncoderUtilization
    nvmlDeviceGetFieldValues
    nvmlDeviceGetGpuInstanceId
    nvmlDeviceGetGpuOperationMode
    nvmlDeviceGetInforomVersion
    nvmlDeviceGetMaxPcieLinkGeneration
    nvmlDeviceGetMaxPcieLinkWidth
    nvmlDeviceGetMemoryErrorCounter
    nvmlDeviceGetMigDeviceHandleByIndex
    nvmlDeviceGetMultiGpuBoard
    nvmlDeviceGetNumGpuCores
    nvmlDeviceGetNvLinkState
    nvmlDeviceGetP2PStatus
    nvmlDeviceGetPcieThroughput
    nvmlDeviceGetPowerManagementDefaultLimit
    nvmlDeviceGetPowerManagementLimitConstraints
    nvmlDeviceGetPowerManagementMode
    nvmlDeviceGetPowerState
    nvmlDeviceGetProcessUtilization
    nvmlDeviceGetRemappedRows
    nvmlDeviceGetRetiredPages
    nvmlDeviceGetRetiredPagesPendingStatus
    nvmlDeviceGetSamples
    nvmlDeviceGetSupportedGraphicsClocks
    nvmlDeviceGetSupportedMemoryClocks
    nvmlDeviceGetTemperatureThreshold
    nvmlDeviceGetTopologyCommonAncestor
    nvmlDeviceGetTotalEccErrors
    nvmlDeviceGetTotalEnergyConsumption
    nvmlDeviceGetVbiosVersion
    nvmlDeviceGetViolationStatus
    nvmlDeviceGetVirtualizationMode
}
