@preconcurrency import AVFoundation
import TinyViTKit

/// The back camera as a stream of upright frames.
///
/// `@unchecked Sendable`: everything that changes does so on `queue`.
final class CameraSession: NSObject, @unchecked Sendable {
    let session = AVCaptureSession()

    private let queue = DispatchQueue(label: "camera")
    private var configured = false
    private var continuation: AsyncStream<RgbImage>.Continuation?

    /// Asks for the permission where that has not been done, and starts.
    ///
    /// - Returns: the frames. It holds the newest alone, so what comes while one is being
    ///   classified is dropped; the camera stops when the task that reads it ends.
    /// - Throws: `BundleError`: no permission, or no camera.
    func frames() async throws -> AsyncStream<RgbImage> {
        guard await AVCaptureDevice.requestAccess(for: .video) else {
            throw BundleError("camera: not allowed; allow it in Settings or choose a photo")
        }
        let (frames, continuation) = AsyncStream.makeStream(
            of: RgbImage.self, bufferingPolicy: .bufferingNewest(1))
        continuation.onTermination = { [weak self] _ in self?.stop() }
        try await withCheckedThrowingContinuation { (done: CheckedContinuation<Void, any Error>) in
            queue.async {
                done.resume(
                    with: Result {
                        try self.configure()
                        self.continuation = continuation
                        self.session.startRunning()
                    })
            }
        }
        return frames
    }

    private func stop() {
        queue.async {
            self.session.stopRunning()
            self.continuation = nil
        }
    }

    private func configure() throws {
        if configured { return }
        guard
            let camera = AVCaptureDevice.default(
                .builtInWideAngleCamera, for: .video, position: .back)
        else { throw BundleError("camera: this device has none at its back; choose a photo") }
        let input = try AVCaptureDeviceInput(device: camera)
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [
            kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA
        ]
        output.alwaysDiscardsLateVideoFrames = true
        output.setSampleBufferDelegate(self, queue: queue)
        session.beginConfiguration()
        defer { session.commitConfiguration() }
        session.sessionPreset = .vga640x480
        guard session.canAddInput(input), session.canAddOutput(output) else {
            throw BundleError("camera: another app holds it; close that or choose a photo")
        }
        session.addInput(input)
        session.addOutput(output)
        // The app is in portrait only; so the frames come upright.
        if let connection = output.connection(with: .video),
            connection.isVideoRotationAngleSupported(90)
        {
            connection.videoRotationAngle = 90
        }
        configured = true
    }
}

extension CameraSession: AVCaptureVideoDataOutputSampleBufferDelegate {
    func captureOutput(
        _ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer,
        from connection: AVCaptureConnection
    ) {
        guard let buffer = CMSampleBufferGetImageBuffer(sampleBuffer),
            let frame = RgbImage(frame: buffer)
        else { return }
        continuation?.yield(frame)  // on `queue`, as it was set
    }
}
