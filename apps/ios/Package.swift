// swift-tools-version: 5.9
import PackageDescription

let strict: [SwiftSetting] = [.enableExperimentalFeature("StrictConcurrency")]

let package = Package(
    name: "TinyViTKit",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "TinyViTKit", targets: ["TinyViTKit"])],
    targets: [
        .target(name: "TinyViTKit", swiftSettings: strict),
        .testTarget(
            name: "TinyViTKitTests", dependencies: ["TinyViTKit"], swiftSettings: strict),
    ]
)
