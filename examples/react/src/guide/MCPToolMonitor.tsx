import { SSEClient } from "./SSEClient";
import React, { useEffect, useState, useRef } from 'react';

interface ToolStatus {
    status: string;
    tool_name: string;
    timestamp: string;
    details: any;
}

interface PermissionRequest {
    tool_name: string;
    parameters: any;
    risk_level: string;
    timestamp: string;
    status: string;
}

const MCPToolMonitor: React.FC<{ sessionId: string; token: string }> = ({ 
    sessionId, 
    token 
}) => {
    const [toolStatus, setToolStatus] = useState<ToolStatus | null>(null);
    const [permissionRequest, setPermissionRequest] = useState<PermissionRequest | null>(null);
    const [isConnected, setIsConnected] = useState(false);
    const sseClient = useRef<SSEClient | null>(null);

    useEffect(() => {
        // 创建SSE客户端
        sseClient.current = new SSEClient(sessionId, token);
        
        // 设置事件处理器
        sseClient.current.onConnectionOpen = () => {
            setIsConnected(true);
        };
        
        sseClient.current.onToolStatusChange = (status) => {
            setToolStatus(status);
        };
        
        sseClient.current.onPermissionRequest = (request) => {
            setPermissionRequest(request);
        };
        
        sseClient.current.onPermissionCleared = () => {
            setPermissionRequest(null);
        };
        
        sseClient.current.onError = (message) => {
            console.error('SSE错误:', message);
            setIsConnected(false);
        };
        
        // 建立连接
        sseClient.current.connect();
        
        // 清理函数
        return () => {
            sseClient.current?.disconnect();
        };
    }, [sessionId, token]);

    const handlePermissionResponse = async (approved: boolean) => {
        if (sseClient.current) {
            const success = await sseClient.current.approvePermission(
                approved, 
                approved ? '用户同意' : '用户拒绝'
            );
            
            if (success) {
                setPermissionRequest(null);
            }
        }
    };

    return (
        <div className="mcp-tool-monitor">
            <div className="connection-status">
                状态: {isConnected ? '已连接' : '未连接'}
            </div>
            
            {toolStatus && (
                <div className="tool-status">
                    <h3>工具状态</h3>
                    <p>工具: {toolStatus.tool_name}</p>
                    <p>状态: {toolStatus.status}</p>
                    <p>时间: {new Date(toolStatus.timestamp).toLocaleString()}</p>
                </div>
            )}
            
            {permissionRequest && (
                <div className="permission-request">
                    <h3>权限确认</h3>
                    <p>工具: {permissionRequest.tool_name}</p>
                    <p>风险级别: {permissionRequest.risk_level}</p>
                    <p>参数: {JSON.stringify(permissionRequest.parameters)}</p>
                    
                    <div className="permission-buttons">
                        <button 
                            onClick={() => handlePermissionResponse(true)}
                            className="approve-btn"
                        >
                            同意
                        </button>
                        <button 
                            onClick={() => handlePermissionResponse(false)}
                            className="reject-btn"
                        >
                            拒绝
                        </button>
                    </div>
                </div>
            )}
        </div>
    );
};

export default MCPToolMonitor;
